//! The guide: from the first program to a cluster that you operate.
//!
//! | page | answers |
//! |---|---|
//! | [`first_program`] | How do I start a node, or three, and use them? |
//! | [`state_machine`] | What do I write to replicate my own state? |
//! | [`errors`] | A call failed: did it take effect, and may I retry? |
//! | [`consistency`] | What may a read miss, and what does it cost? |
//! | [`snapshots`] | What keeps the log short, and what must my machine do for it? |
//! | [`operating`] | What do I watch, back up, upgrade and restart, and how do nodes join and leave? |
//! | [`faq`] | I see this symptom: what is it? |
//!
//! Every program on these pages is compiled and run by the tests.

pub mod consistency;
pub mod errors;
pub mod faq;
pub mod first_program;
pub mod operating;
pub mod snapshots;
pub mod state_machine;
