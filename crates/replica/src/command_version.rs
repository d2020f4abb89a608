//! Versions of commands: which of them a leader takes, and where a program meets one that it does not decode.
//!
//! | rule | why |
//! |---|---|
//! | a leader takes a command if every voter has told it that its program decodes the version | each of them will have to apply it |
//! | or if an entry of that version is applied here (the floor) | the cluster has begun to use it: a voter that is dead takes nothing back |
//! | a node stops at an entry of a version that its program does not decode | applied by others and not here, it would make the states differ |

use d_engine_storage::LogEntry;

use crate::replica::Replica;
use crate::{ProposeError, StateMachine, StopReason};

impl Replica {
    /// Up to which version this leader takes commands; `None` when it does not lead.
    pub(crate) fn command_version_allowed(&self) -> Option<u32> {
        Some(self.command_version_floor.max(self.core.common_command_version()?.version))
    }

    /// Why a leader does not take a command of this version.
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

/// Whether the program decodes all of these committed entries. Judged before the state machine is given any of them.
pub(crate) fn check_entries(machine: &dyn StateMachine, entries: &[&LogEntry]) -> Result<(), StopReason> {
    // Most are of version 0, which every program decodes.
    let mut above = entries.iter().filter(|entry| entry.version > 0).peekable();
    let max = if above.peek().is_some() { machine.command_version_max() } else { 0 };
    match above.find(|entry| entry.version > max) {
        Some(entry) => Err(StopReason::of_older_program(format_args!(
            "the entry at {} holds a command of version {}, and this program decodes commands up to version {max}: start a \
             newer program on this node",
            entry.id, entry.version
        ))),
        None => Ok(()),
    }
}

/// Whether the program decodes what has made the state that it goes on from.
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
        "commands of version {version} took effect in the state up to {at}, and this program decodes commands up to \
         version {max}: start a newer program on this node"
    )))
}
