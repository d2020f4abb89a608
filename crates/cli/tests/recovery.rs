//! The page `docs/recovery.md`, run as it is written.
#![allow(clippy::unwrap_used)]

#[path = "support/shown.rs"]
mod shown;
#[path = "support/story.rs"]
mod story;
mod support;

use story::Story;

#[test]
fn a_snapshot_file_and_the_log_of_a_survivor_become_clusters_as_the_page_says() {
    let story = Story::of("docs/recovery.md", 27);
    assert_eq!(story.nodes.len(), 4);
}
