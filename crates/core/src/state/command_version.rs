//! Which commands every voter can apply: the versions that their programs have announced to the
//! leader.
//!
//! This makes an upgrade safe if no node is downgraded. A voter may announce a version and then be
//! started with an older program, before its leader has lost the connection or after a command of
//! that version is in the log. It then meets an entry that it does not decode: it stops with a
//! clear reason, and its state stays unchanged.

use crate::types::NodeId;

/// The highest command version that every voter decodes, as far as a leader knows, and the voter
/// that allows no higher one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommonVersion {
    /// The lowest version that a voter announced; 0 while one of them has announced nothing.
    pub version: u32,
    /// The voter that allows no higher one.
    pub held_by: NodeId,
    /// What that voter decodes; `None` if it has announced nothing to this leader, or may have been
    /// started with another program since.
    pub announced: Option<u32>,
}
