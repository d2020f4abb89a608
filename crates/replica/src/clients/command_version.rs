//! Command versions: which of them a leader accepts, and where a program finds one that it does not
//! decode.
//!
//! | rule | why |
//! |---|---|
//! | a leader accepts a command if every voter has announced that its program decodes the version | each of them will have to apply it |
//! | or if an entry of that version is applied here (the floor) | the cluster already uses the version; a voter that is down cannot revoke that |
//! | a node stops at an entry of a version that its program does not decode | if it skipped an entry that others apply, the states would differ |

use d_engine_storage::LogEntry;

use crate::replica::Replica;
use crate::{ProposeError, StateMachine, StopReason};

impl Replica {
    /// The highest version that this leader accepts; `None` if it does not lead.
    pub(crate) fn command_version_allowed(&self) -> Option<u32> {
        Some(self.command_version_floor.max(self.core.common_command_version()?.version))
    }

    /// The error for a command of a version that this leader does not accept.
    pub(crate) fn too_new(&self, version: u32) -> Option<ProposeError> {
        if version <= self.command_version_floor {
            return None;
        }
        let common = self.core.common_command_version()?;
        (version > common.version).then(|| ProposeError::NewerCommand {
            version,
            allowed: self.command_version_floor.max(common.version),
            held_by: common.held_by,
            announced: common.announced,
        })
    }
}

/// Checks that the program decodes all of these committed entries, before the state machine is
/// given any of them.
pub(crate) fn check_entries(
    machine: &dyn StateMachine,
    entries: &[&LogEntry],
) -> Result<(), StopReason> {
    // Most entries are of version 0, which every program decodes.
    let mut above = entries.iter().filter(|entry| entry.version > 0).peekable();
    let max = if above.peek().is_some() { machine.command_version_max() } else { 0 };
    match above.find(|entry| entry.version > max) {
        Some(entry) => Err(StopReason::of_older_program(format_args!(
            "the entry at {} contains a command of version {}, but this program decodes only \
             commands up to version {max}: start a newer program on this node",
            entry.id, entry.version
        ))),
        None => Ok(()),
    }
}

/// Checks that the program decodes the commands that produced the state from which it continues.
pub(crate) fn check_state(
    machine: &dyn StateMachine,
    version: u32,
    at: crate::LogId,
) -> Result<(), StopReason> {
    let max = machine.command_version_max();
    if version <= max {
        return Ok(());
    }
    Err(StopReason::of_older_program(format_args!(
        "commands of version {version} took effect in the state up to {at}, but this program \
         decodes only commands up to version {max}: start a newer program on this node"
    )))
}
