//! The pages of `docs/members.md`, run as they are written, and the exit code of a removed node.
#![allow(clippy::unwrap_used)]

#[path = "support/shown.rs"]
mod shown;
#[path = "support/story.rs"]
mod story;
mod support;

use story::Story;
use support::run;

#[test]
fn growing_replacing_and_moving_work_as_the_page_says() {
    let mut story = Story::of("docs/members.md", 10);

    // Node 1 was replaced: its process ends by itself, and does not start again.
    let removed = story.nodes.remove("node-1.toml").unwrap();
    assert_eq!(removed.finish().code, Some(6));
    let again = run(&["serve", "--config", story.dir.path().join("node-1.toml").to_str().unwrap()]);
    assert_eq!(again.code, Some(6), "{}", again.err);
    assert!(again.err.contains("belonged to node 1"), "{}", again.err);
}
