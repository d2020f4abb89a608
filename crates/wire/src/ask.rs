//! What a node that need not be a member asks of a cluster, and the answers.

use bytes::Bytes;
use d_engine_core::{NodeId, QuorumRisk};
use d_engine_replica::RefusedBecause;
use d_engine_storage::{
    Admission, ClusterId, ConfigId, Incarnation, Invitation, JoinAs, MemberChange, NewMember,
};
use prost::Message as _;

use crate::handshake::{JoinNumber, config_from_wire, config_to_wire, sixteen};
use crate::message::{self, answer, change_members::Change, question};

/// A question to a cluster's leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The dialing node wants to become a member.
    Join {
        /// What it becomes.
        member: NewMember,
        /// The name of its state machine; empty: not compared.
        state_machine: String,
        /// Drawn by the dialing node. The leader names it when it dials the address of `member`.
        number: JoinNumber,
    },
    /// A caller of the dialing node, which is a member, wants to change the members.
    Change {
        /// The goal; not [`MemberChange::Add`], because a node joins by itself.
        change: MemberChange,
        /// The configuration on which the caller's decision is based.
        expected: Option<ConfigId>,
        /// Whether to make the change even if too few voters may answer afterwards.
        risk: QuorumRisk,
    },
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The node is a member; the entry that says so is committed.
    Joined {
        /// The cluster.
        cluster: ClusterId,
        /// The node's id.
        node: NodeId,
        /// A committed configuration that contains the node: the one that added it, or a later one.
        born: ConfigId,
    },
    /// Another node leads.
    NotLeader {
        /// The leader and its address for other nodes, if it is known.
        leader: Option<(NodeId, String)>,
    },
    /// It cannot be done now, for this reason; ask again.
    Later(String),
    /// It is refused for this reason; asking again does not help.
    Refused {
        /// The reason in words, and what to do.
        reason: String,
        /// What a program may want to distinguish.
        because: RefusedBecause,
    },
    /// The goal of the change is reached.
    Changed,
}

/// A question or an answer that cannot be read: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The bytes are not such a message.
    #[error("it is not a protobuf message: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// A newer program asks or answers something that this one does not know.
    #[error("this program does not know what was asked or answered; a newer one may")]
    Unknown,
    /// A field is missing or invalid.
    #[error("its field `{0}` is invalid")]
    Field(&'static str),
}

/// Encodes a question.
#[must_use]
pub fn encode_question(question: &Question) -> Bytes {
    let body = match question {
        Question::Join { member, state_machine, number } => {
            question::Body::Join(join_to_wire(member, state_machine, *number))
        }
        Question::Change { change, expected, risk } => {
            question::Body::ChangeMembers(message::ChangeMembers {
                change: change_to_wire(change),
                expected: expected.map(config_to_wire),
                accept_risk: *risk == QuorumRisk::Accept,
            })
        }
    };
    message::Question { body: Some(body) }.encode_to_vec().into()
}

fn join_to_wire(member: &NewMember, state_machine: &str, number: JoinNumber) -> message::Join {
    let (as_learner, replaces) = match member.joins_as {
        JoinAs::Learner => (true, 0),
        JoinAs::Voter { replaces } => (false, replaces.unwrap_or(0)),
    };
    message::Join {
        peer_addr: member.peer_addr.clone(),
        client_addr: member.client_addr.clone(),
        node: member.node.unwrap_or(0),
        as_learner,
        replaces,
        state_machine: state_machine.to_owned(),
        number: Bytes::copy_from_slice(&number.0),
    }
}

/// `None` for a node that is added.
fn change_to_wire(change: &MemberChange) -> Option<Change> {
    Some(match change {
        MemberChange::Add(_) => return None,
        MemberChange::Remove(node) => Change::Remove(*node),
        MemberChange::Promote(node) => Change::Promote(*node),
        MemberChange::Demote(node) => Change::Demote(*node),
        MemberChange::Replace { old, new } => {
            Change::Replace(message::ReplaceMember { old: *old, new: *new })
        }
        MemberChange::UpdateAddress { node, peer_addr, client_addr } => {
            Change::UpdateAddress(message::MoveMember {
                node: *node,
                peer_addr: peer_addr.clone(),
                client_addr: client_addr.clone(),
            })
        }
        MemberChange::Invite(Invitation { peer_addr, replaces }) => {
            let (peer_addr, replaces) = (peer_addr.clone(), replaces.unwrap_or(0));
            Change::Invite(message::Invitation { peer_addr, replaces })
        }
        MemberChange::Withdraw(peer_addr) => Change::Withdraw(peer_addr.clone()),
        MemberChange::Admit(admission) => Change::Admit(match admission {
            Admission::Open => message::JoinAdmission::Open.into(),
            Admission::Invited => message::JoinAdmission::Invited.into(),
        }),
    })
}

fn change_from_wire(change: Change) -> Result<MemberChange, AskError> {
    Ok(match change {
        Change::Remove(node) => MemberChange::Remove(node),
        Change::Promote(node) => MemberChange::Promote(node),
        Change::Demote(node) => MemberChange::Demote(node),
        Change::Replace(both) => MemberChange::Replace { old: both.old, new: both.new },
        Change::UpdateAddress(message::MoveMember { node, peer_addr, client_addr }) => {
            MemberChange::UpdateAddress { node, peer_addr, client_addr }
        }
        Change::Invite(message::Invitation { peer_addr, replaces }) => {
            let replaces = (replaces != 0).then_some(replaces);
            MemberChange::Invite(Invitation { peer_addr, replaces })
        }
        Change::Withdraw(peer_addr) => MemberChange::Withdraw(peer_addr),
        Change::Admit(admission) => MemberChange::Admit(match admission.try_into() {
            Ok(message::JoinAdmission::Open) => Admission::Open,
            Ok(message::JoinAdmission::Invited) => Admission::Invited,
            _ => return Err(AskError::Field("admit")),
        }),
    })
}

/// Decodes what [`encode_question`] wrote. `incarnation` is the one of the handshake.
///
/// # Errors
/// See [`AskError`]: close the connection.
pub fn decode_question(bytes: Bytes, incarnation: Incarnation) -> Result<Question, AskError> {
    let join = match message::Question::decode(bytes)?.body.ok_or(AskError::Unknown)? {
        question::Body::Join(join) => join,
        question::Body::ChangeMembers(asked) => {
            return Ok(Question::Change {
                change: change_from_wire(asked.change.ok_or(AskError::Unknown)?)?,
                expected: asked.expected.map(|id| config_from_wire(Some(id))),
                risk: if asked.accept_risk { QuorumRisk::Accept } else { QuorumRisk::Refuse },
            });
        }
    };
    let given = |number: u64| (number != 0).then_some(number);
    let joins_as = match join.as_learner {
        true => JoinAs::Learner,
        false => JoinAs::Voter { replaces: given(join.replaces) },
    };
    let member = NewMember {
        node: given(join.node),
        peer_addr: join.peer_addr,
        client_addr: join.client_addr,
        incarnation,
        joins_as,
    };
    let number = sixteen(&join.number).map(JoinNumber).ok_or(AskError::Field("number"))?;
    Ok(Question::Join { member, state_machine: join.state_machine, number })
}

/// Encodes an answer.
#[must_use]
pub fn encode_answer(answer: &Answer) -> Bytes {
    let mut refused_because = message::RefusedBecause::Unspecified;
    let body = match answer {
        Answer::Joined { cluster, node, born } => answer::Body::Joined(message::Joined {
            cluster_id: Bytes::copy_from_slice(&cluster.0),
            node: node.get(),
            config: Some(config_to_wire(*born)),
        }),
        Answer::NotLeader { leader } => {
            let (leader, peer_addr) = leader.clone().unzip();
            answer::Body::NotLeader(message::NotLeader {
                leader: leader.map_or(0, NodeId::get),
                peer_addr: peer_addr.unwrap_or_default(),
            })
        }
        Answer::Later(why) => answer::Body::Later(why.clone()),
        Answer::Refused { reason, because } => {
            refused_because = match because {
                RefusedBecause::Stale => message::RefusedBecause::Stale,
                RefusedBecause::WouldLoseQuorum => message::RefusedBecause::WouldLoseQuorum,
                _ => message::RefusedBecause::Unspecified,
            };
            answer::Body::Refused(reason.clone())
        }
        Answer::Changed => answer::Body::Changed(message::Changed {}),
    };
    let because = refused_because.into();
    message::Answer { body: Some(body), because }.encode_to_vec().into()
}

/// Decodes what [`encode_answer`] wrote.
///
/// # Errors
/// See [`AskError`]: close the connection.
pub fn decode_answer(bytes: Bytes) -> Result<Answer, AskError> {
    let message = message::Answer::decode(bytes)?;
    let because = match message.because() {
        message::RefusedBecause::Stale => RefusedBecause::Stale,
        message::RefusedBecause::WouldLoseQuorum => RefusedBecause::WouldLoseQuorum,
        message::RefusedBecause::Unspecified => RefusedBecause::Rule,
    };
    let body = message.body.ok_or(AskError::Unknown)?;
    Ok(match body {
        answer::Body::Joined(joined) => Answer::Joined {
            cluster: sixteen(&joined.cluster_id)
                .map(ClusterId)
                .ok_or(AskError::Field("cluster_id"))?,
            node: NodeId::new(joined.node).ok_or(AskError::Field("node"))?,
            born: config_from_wire(joined.config),
        },
        answer::Body::NotLeader(other) => Answer::NotLeader {
            leader: NodeId::new(other.leader).map(|leader| (leader, other.peer_addr)),
        },
        answer::Body::Later(why) => Answer::Later(why),
        answer::Body::Refused(reason) => Answer::Refused { reason, because },
        answer::Body::Changed(message::Changed {}) => Answer::Changed,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn questions_and_answers_come_back_as_they_were_sent() {
        let incarnation = Incarnation([7; 16]);
        for joins_as in
            [JoinAs::Learner, JoinAs::Voter { replaces: None }, JoinAs::Voter { replaces: Some(3) }]
        {
            for node in [None, Some(9)] {
                let member = NewMember {
                    node,
                    peer_addr: "db-4:7101".to_owned(),
                    client_addr: String::new(),
                    incarnation,
                    joins_as,
                };
                let (state_machine, number) = ("kv".to_owned(), JoinNumber([3; 16]));
                let question = Question::Join { member, state_machine, number };
                let sent = encode_question(&question);
                assert_eq!(decode_question(sent, incarnation).unwrap(), question);
            }
        }
        for change in [
            MemberChange::Remove(1),
            MemberChange::Promote(2),
            MemberChange::Demote(3),
            MemberChange::Replace { old: 4, new: 5 },
            MemberChange::Invite(Invitation { peer_addr: "n7:1".to_owned(), replaces: None }),
            MemberChange::Invite(Invitation { peer_addr: "n7:1".to_owned(), replaces: Some(3) }),
            MemberChange::Withdraw("n7:1".to_owned()),
            MemberChange::Admit(Admission::Open),
            MemberChange::Admit(Admission::Invited),
            MemberChange::UpdateAddress {
                node: 6,
                peer_addr: None,
                client_addr: Some(String::new()),
            },
        ] {
            for (expected, risk) in [
                (None, QuorumRisk::Refuse),
                (Some(ConfigId { term: 3, version: 9 }), QuorumRisk::Accept),
            ] {
                let question = Question::Change { change: change.clone(), expected, risk };
                let sent = encode_question(&question);
                assert_eq!(decode_question(sent, incarnation).unwrap(), question);
            }
        }
        let refused = |because| Answer::Refused { reason: "no".to_owned(), because };
        let node = NodeId::new(4).unwrap();
        let born = ConfigId { term: 3, version: 9 };
        for answer in [
            Answer::Joined { cluster: ClusterId([1; 16]), node, born },
            Answer::NotLeader { leader: None },
            Answer::NotLeader { leader: Some((node, "db-4:7101".to_owned())) },
            Answer::Later("busy".to_owned()),
            refused(RefusedBecause::Rule),
            refused(RefusedBecause::Stale),
            refused(RefusedBecause::WouldLoseQuorum),
            Answer::Changed,
        ] {
            assert_eq!(decode_answer(encode_answer(&answer)).unwrap(), answer);
        }
    }

    #[test]
    fn what_a_newer_program_asks_or_answers_is_an_error() {
        assert_eq!(decode_question(Bytes::new(), Incarnation([7; 16])), Err(AskError::Unknown));
        assert_eq!(decode_answer(Bytes::new()), Err(AskError::Unknown));
        assert!(matches!(decode_answer(Bytes::from_static(b"x")), Err(AskError::Protobuf(_))));
        let nameless = message::Joined { node: 4, ..message::Joined::default() };
        let body = Some(answer::Body::Joined(nameless));
        let answer = message::Answer { body, ..message::Answer::default() };
        let decoded = decode_answer(answer.encode_to_vec().into());
        assert_eq!(decoded, Err(AskError::Field("cluster_id")));
    }
}
