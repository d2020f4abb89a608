//! "joins by invitation": where only invited nodes may join, each node that joins was invited, by
//! the address that it has then, and to what it becomes; an invitation is used once.

use d_engine_storage::{Admission, Member, MemberRole, Membership};

use crate::monitors::memberships::Memberships;
use crate::monitors::violation::{Rule, Violation};

/// How many committed memberships were checked, and how many nodes have joined by invitation.
#[derive(Debug, Default)]
pub(crate) struct Invitations {
    checked: usize,
    pub(crate) used: usize,
}

impl Invitations {
    /// Checks the memberships that were committed since the last call.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn check(&mut self, memberships: &Memberships) -> Result<(), Violation> {
        let all = memberships.committed();
        let from = self.checked.saturating_sub(1);
        self.checked = all.len();
        for pair in all.get(from..).unwrap_or_default().windows(2) {
            let [(_, before), (_, after)] = pair else { continue };
            for member in after.members().iter().filter(|it| it.node > before.last_node()) {
                self.check_joined(member, before, after)?;
            }
        }
        Ok(())
    }

    fn check_joined(
        &mut self,
        member: &Member,
        before: &Membership,
        after: &Membership,
    ) -> Result<(), Violation> {
        let is_its = |it: &&d_engine_storage::Invitation| it.peer_addr == member.peer_addr;
        let invited = before.invitations().iter().find(is_its);
        let is_right = match (invited, member.role) {
            (None, _) => before.admission() == Admission::Open,
            (Some(invited), MemberRole::Learner) => invited.replaces.is_none(),
            (Some(invited), role) => role == MemberRole::Joining { replaces: invited.replaces },
        };
        if !is_right || after.invitations().iter().any(|it| is_its(&it)) {
            return Rule::JoinsByInvitation.broken_by(
                member.node,
                format_args!("{member:?} has joined, invited: {invited:?}, after {before:?}"),
            );
        }
        self.used += usize::from(invited.is_some());
        Ok(())
    }
}
