//! Which nodes may join: all that reach a member, or those whose address was announced.

use super::request::{Admission, ChangeError, INVITATIONS_MAX, Invitation, JoinAs, NewMember};
use super::{MemberRole, Membership, MembershipError};

impl Membership {
    /// Which nodes may join.
    #[must_use]
    pub fn admission(&self) -> Admission {
        self.admission
    }

    /// The nodes that are to join, sorted by address.
    #[must_use]
    pub fn invitations(&self) -> &[Invitation] {
        &self.invitations
    }

    /// Invites a node. An earlier invitation of the same address is replaced. The goal is reached
    /// if a member has the address, unless the member is the one to be replaced.
    pub(super) fn invite(&mut self, invitation: &Invitation) -> Result<(), ChangeError> {
        let Invitation { peer_addr, replaces } = invitation;
        let has_joined = self.members.iter().any(|it| {
            it.peer_addr == *peer_addr
                && match (*replaces, it.role) {
                    (None, _) => true,
                    (wanted, MemberRole::Joining { replaces }) => wanted == replaces,
                    (Some(old), role) => role == MemberRole::Voter && self.has_removed(old),
                }
        });
        if has_joined {
            return Ok(());
        }
        self.withdraw(peer_addr);
        let replaced = |node: u64| Some(node) == *replaces;
        if self.members.iter().any(|it| it.peer_addr == *peer_addr && !replaced(it.node)) {
            return Err(MembershipError::DuplicateAddress(peer_addr.clone()).into());
        }
        if let Some(old) = *replaces {
            self.may_replace(old, 0)?;
        }
        if self.invitations.len() >= INVITATIONS_MAX {
            return Err(ChangeError::TooManyInvitations);
        }
        self.invitations.push(invitation.clone());
        self.invitations.sort_by(|one, other| one.peer_addr.cmp(&other.peer_addr));
        Ok(())
    }

    /// Withdraws the invitation of this address, if there is one.
    pub(super) fn withdraw(&mut self, peer_addr: &str) {
        self.invitations.retain(|it| it.peer_addr != peer_addr);
    }

    /// Takes the invitation of a node that joins; returns what it becomes. A node that does not say
    /// whom it replaces replaces the voter that its invitation names.
    pub(super) fn take_invitation(&mut self, new: &NewMember) -> Result<JoinAs, ChangeError> {
        let invited = self.invitations.iter().find(|it| it.peer_addr == new.peer_addr);
        let Some(replaces) = invited.map(|invited| invited.replaces) else {
            return match self.admission {
                Admission::Open => Ok(new.joins_as),
                Admission::Invited => {
                    let replaces = match new.joins_as {
                        JoinAs::Voter { replaces } => replaces,
                        JoinAs::Learner => None,
                    };
                    let mut members = self.members.iter();
                    let owner = members.find(|it| it.peer_addr == new.peer_addr);
                    // A member's directory was lost: a plain invitation would not help.
                    if owner.is_some_and(|owner| Some(owner.node) != replaces) {
                        return Err(MembershipError::DuplicateAddress(new.peer_addr.clone()).into());
                    }
                    Err(ChangeError::NotInvited { peer_addr: new.peer_addr.clone(), replaces })
                }
            };
        };
        let invited = JoinAs::Voter { replaces };
        let fits = match new.joins_as {
            JoinAs::Learner => replaces.is_none(),
            JoinAs::Voter { replaces: None } => true,
            asks => asks == invited,
        };
        if !fits {
            return Err(ChangeError::InvitedOtherwise {
                peer_addr: new.peer_addr.clone(),
                invited,
                asks: new.joins_as,
            });
        }
        self.withdraw(&new.peer_addr);
        Ok(match new.joins_as {
            JoinAs::Learner => JoinAs::Learner,
            JoinAs::Voter { .. } => invited,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use d_engine_core::Incarnation;

    use super::super::{Member, MemberChange};
    use super::*;

    /// Voters 1 to `count` at `n1:1` and so on.
    fn voters(count: u64, admission: Admission) -> Membership {
        let members = (1..=count).map(|node| Member {
            node,
            peer_addr: format!("n{node}:1"),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: None,
        });
        Membership::new(members).unwrap().with_admission(admission)
    }

    fn at(peer_addr: &str, joins_as: JoinAs) -> MemberChange {
        MemberChange::Add(NewMember {
            node: None,
            peer_addr: peer_addr.to_owned(),
            client_addr: String::new(),
            incarnation: Incarnation([7; 16]),
            joins_as,
        })
    }

    fn invite(peer_addr: &str, replaces: Option<u64>) -> MemberChange {
        MemberChange::Invite(Invitation { peer_addr: peer_addr.to_owned(), replaces })
    }

    fn after(before: &Membership, change: &MemberChange) -> Membership {
        before.edited(change).unwrap().unwrap()
    }

    const VOTES: JoinAs = JoinAs::Voter { replaces: None };

    #[test]
    fn only_invited_nodes_join_unless_all_are_admitted() {
        let closed = voters(1, Admission::Invited);
        let not_invited = |peer_addr: &str, replaces| {
            Err(ChangeError::NotInvited { peer_addr: peer_addr.to_owned(), replaces })
        };
        assert_eq!(closed.edited(&at("n2:1", VOTES)), not_invited("n2:1", None));
        let other = after(&closed, &invite("n3:1", None));
        assert_eq!(other.edited(&at("n2:1", VOTES)), not_invited("n2:1", None));
        for joins_as in [VOTES, JoinAs::Learner] {
            let joined = after(&after(&other, &invite("n2:1", None)), &at("n2:1", joins_as));
            assert_eq!(joined.members().len(), 2);
            assert_eq!(joined.invitations(), other.invitations(), "one is used up");
        }
        let taken = Err(MembershipError::DuplicateAddress("n1:1".to_owned()).into());
        assert_eq!(closed.edited(&at("n1:1", VOTES)), taken, "what helps is to replace node 1");
        let replaces = JoinAs::Voter { replaces: Some(1) };
        for peer_addr in ["n1:1", "n2:1"] {
            let refused = closed.edited(&at(peer_addr, replaces));
            assert_eq!(refused, not_invited(peer_addr, Some(1)));
            let advice = format!("`d-engine member replace 1 --peer {peer_addr}`");
            assert!(refused.unwrap_err().to_string().contains(&advice));
        }
        let opened = after(&closed, &MemberChange::Admit(Admission::Open));
        assert_eq!(after(&opened, &at("n2:1", VOTES)).members().len(), 2);
        assert_eq!(opened.edited(&MemberChange::Admit(Admission::Open)), Ok(None));
    }

    #[test]
    fn a_node_becomes_what_it_was_invited_to() {
        let closed = voters(3, Admission::Invited);
        let replaces = JoinAs::Voter { replaces: Some(2) };
        let role = MemberRole::Joining { replaces: Some(2) };
        let invited = after(&closed, &invite("n4:1", Some(2)));
        for asks in [VOTES, replaces] {
            let joined = after(&invited, &at("n4:1", asks));
            assert_eq!(joined.members().last().unwrap().role, role, "{asks:?}");
        }
        let plain = after(&closed, &invite("n4:1", None));
        for (invited, asks) in [
            (&invited, JoinAs::Voter { replaces: Some(3) }),
            (&invited, JoinAs::Learner),
            (&plain, replaces),
        ] {
            let refused = invited.edited(&at("n4:1", asks)).unwrap_err();
            assert!(matches!(refused, ChangeError::InvitedOtherwise { .. }), "{refused}");
        }
        // An open cluster keeps to an invitation too.
        let opened = after(&invited, &MemberChange::Admit(Admission::Open));
        assert_eq!(after(&opened, &at("n4:1", VOTES)).members().last().unwrap().role, role);
    }

    #[test]
    fn an_invitation_names_a_goal() {
        let closed = voters(3, Admission::Invited);
        // Of a member's address: it has joined, unless it is to be replaced there.
        assert_eq!(closed.edited(&invite("n2:1", None)), Ok(None));
        assert_eq!(
            closed.edited(&invite("n2:1", Some(3))),
            Err(MembershipError::DuplicateAddress("n2:1".to_owned()).into())
        );
        let same_place = after(&closed, &invite("n2:1", Some(2)));
        let joined = after(&same_place, &at("n2:1", VOTES));
        assert_eq!(joined.edited(&invite("n2:1", Some(2))), Ok(None), "it is joining");
        let votes = joined.joint(|_| true, super::super::Leavers::Go).unwrap().after_joint();
        assert_eq!(votes.edited(&invite("n2:1", Some(2))), Ok(None), "it votes");
        // The last word counts, and may be taken back.
        assert_eq!(same_place.edited(&invite("n2:1", None)), Ok(None), "it has joined");
        let elsewhere = after(&closed, &invite("n4:1", Some(2)));
        let plain = after(&elsewhere, &invite("n4:1", None));
        assert_eq!(plain, after(&closed, &invite("n4:1", None)));
        let withdrawn = after(&same_place, &MemberChange::Withdraw("n2:1".to_owned()));
        assert_eq!(withdrawn, closed);
        assert_eq!(closed.edited(&MemberChange::Withdraw("n9:1".to_owned())), Ok(None));
        for (unknown, error) in
            [(9, ChangeError::UnknownMember(9)), (0, ChangeError::UnknownMember(0))]
        {
            assert_eq!(closed.edited(&invite("n4:1", Some(unknown))), Err(error));
        }
    }

    /// Host names mean the same in capitals.
    #[test]
    fn addresses_are_compared_without_their_case() {
        let closed = voters(3, Admission::Invited);
        assert_eq!(closed.edited(&invite("N2:1", None)), Ok(None), "it has joined");
        let invited = after(&closed, &invite("N4.Example:1", None));
        assert_eq!(invited, after(&closed, &invite("n4.example:1", None)));
        let withdrawn = invited.edited(&MemberChange::Withdraw("n4.EXAMPLE:1".to_owned()));
        assert_eq!(withdrawn.unwrap().unwrap(), closed);
        let joined = after(&invited, &at("n4.eXample:1", VOTES));
        assert_eq!(joined.members().last().unwrap().peer_addr, "n4.example:1");
        let moved = |peer_addr: &str| MemberChange::UpdateAddress {
            node: 1,
            peer_addr: Some(peer_addr.to_owned()),
            client_addr: None,
        };
        assert_eq!(closed.edited(&moved("N1:1")), Ok(None));
        // As an earlier program has stored it.
        let mut earlier = after(&closed, &invite("n4.example:1", None));
        earlier.invitations[0].peer_addr = "N4.Example:1".to_owned();
        earlier.members[1].peer_addr = "N2:1".to_owned();
        let joined = after(&earlier, &at("N4.Example:1", VOTES));
        assert_eq!((joined.invitations(), joined.members().len()), (&[][..], 4));
        assert_eq!(earlier.edited(&invite("N2:1", None)), Ok(None));
        let withdrawn = after(&earlier, &MemberChange::Withdraw("N4.Example:1".to_owned()));
        assert_eq!(withdrawn.invitations(), []);
        let taken = Err(MembershipError::DuplicateAddress("n2:1".to_owned()).into());
        assert_eq!(closed.edited(&moved("N2:1")), taken);
    }

    #[test]
    fn invitations_are_bounded_and_survive_the_log() {
        let mut membership = voters(1, Admission::Invited);
        for number in 0..INVITATIONS_MAX {
            membership = after(&membership, &invite(&format!("m{number:03}:1"), None));
        }
        let one_more = membership.edited(&invite("one-more:1", None));
        assert_eq!(one_more, Err(ChangeError::TooManyInvitations));
        assert_eq!(Membership::decode(&membership.encode()), Ok(membership));
    }
}
