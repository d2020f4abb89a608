//! Which commands every voter can apply: the versions that their programs have announced to the leader.
//!
//! This keeps an upgrade safe in which nobody goes back. A voter that announces a version and is then started with an
//! older program, before its leader has lost the connection or after a command of that version is in the log, meets an
//! entry that it does not decode: it stops by name, and its state stays what it was.

use crate::NodeId;
use crate::raft_core::RaftCore;
use crate::role::Role;

/// The highest command version that every voter decodes, as far as a leader knows, and the voter that allows no
/// higher one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommonVersion {
    /// No voter is known to decode less; 0 while one of them has told nothing.
    pub version: u32,
    /// The voter that allows no higher one.
    pub held_by: NodeId,
    /// What that voter decodes; `None` if it has not told this leader, or may run another program since.
    pub announced: Option<u32>,
}

impl RaftCore {
    /// The highest command version that this node's program decodes.
    #[must_use]
    pub fn command_version_max(&self) -> u32 {
        self.command_version_max
    }

    /// On a leader: the highest command version that every voter decodes. A voter counts with what it has announced
    /// to *this* leader since their connection stands: before that, an older program may have been started there.
    #[must_use]
    pub fn common_command_version(&self) -> Option<CommonVersion> {
        let Role::Leader(leader) = &self.role else { return None };
        let own = CommonVersion {
            version: self.command_version_max,
            held_by: self.node,
            announced: Some(self.command_version_max),
        };
        let configuration = self.log.configuration();
        let voters = leader.followers.iter().filter(|(node, _)| configuration.is_voter(**node));
        let followers = voters.map(|(node, progress)| {
            let announced = progress.command_version_max;
            CommonVersion { version: announced.unwrap_or(0), held_by: *node, announced }
        });
        let ignores_unheard = cfg!(mutant = "version-unheard-voter-ignored");
        let followers = followers.filter(|follower| !ignores_unheard || follower.announced.is_some());
        core::iter::once(own).chain(followers).min_by_key(|voter| voter.version)
    }
}
