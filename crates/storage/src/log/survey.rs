//! Reads the data directory of a node that does not run, and changes nothing: what is in it, what
//! is damaged, and what a start would do with it.
//!
//! Recovery (`recover.rs`) refuses a damaged log as a whole. A survey continues after the damage,
//! by the same rules and with the same decoders, and names each damaged place with the entries that
//! are lost there. It reads segment by segment and group by group: its memory is bounded by the
//! largest group, plus about a hundred bytes for each segment and each place where a suffix of the
//! log was replaced, whatever the log's size.
//!
//! The first pass, [`Survey::read_log`], finds out which records count: a later entry with the same
//! index replaces an entry and everything after it. The second pass, [`Survey::entries`], visits
//! the entries that count.

mod directory;
mod entries;
mod parts;
mod replay;
mod report;
mod tail;
mod walk;

pub use self::directory::Survey;
pub use self::entries::{Found, Range};
pub use self::replay::LogSummary;
pub use self::report::{Damage, Loss, Owner, SegmentSummary, StartOutcome, StoredEntry, TornTail};
