//! Which offer of a snapshot a node accepts while it receives another snapshot.

use d_engine_core::Term;

/// What a node does with an offer of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OfferDecision {
    /// No other snapshot is being received: accept the offer.
    Accept,
    /// Break the connection of the receive in progress, and accept the offer once that receive has
    /// ended.
    Replace,
    /// Refuse the offer as [`Refusal::Busy`](crate::Refusal::Busy), with this text.
    Refuse(&'static str),
}

/// Decides about an offer from a leader of term `offered` at a node that receives a snapshot from
/// the leader of term `receiving`, if it receives one.
///
/// A node receives one snapshot at a time. An offer of an earlier term comes from a deposed leader.
/// Any other offer replaces the receive in progress: its sender is deposed, or has lost its
/// connection and has dialled again.
#[must_use]
pub fn decide_offer(receiving: Option<Term>, offered: Term) -> OfferDecision {
    match receiving {
        None => OfferDecision::Accept,
        Some(before) if before > offered => {
            OfferDecision::Refuse("a leader of a later term sends a snapshot")
        }
        Some(_) => OfferDecision::Replace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(receiving: Option<u64>, offered: u64) -> OfferDecision {
        decide_offer(receiving.map(Term::new), Term::new(offered))
    }

    #[test]
    fn an_offer_is_accepted_while_nothing_is_received() {
        assert_eq!(decide(None, 3), OfferDecision::Accept);
    }

    #[test]
    fn an_offer_of_the_same_or_a_later_term_replaces_the_receive_in_progress() {
        for offered in [3, 4, 9] {
            assert_eq!(decide(Some(3), offered), OfferDecision::Replace, "term {offered}");
        }
    }

    #[test]
    fn an_offer_of_a_deposed_leader_is_refused_and_the_receive_continues() {
        for offered in [1, 2] {
            assert!(matches!(decide(Some(3), offered), OfferDecision::Refuse(_)), "term {offered}");
        }
    }
}
