//! What a new cluster of one node has, whatever it is made from.

use d_engine_core::Term;
use d_engine_storage::{Admission, Member, Membership, MembershipError, address};

/// How far the term rises at least, and less than twice as far.
pub const TERMS_ABOVE: u64 = 1_000_000;
/// Space for the first segment of the log and the small files.
pub(crate) const LOG_BYTES: u64 = 16 << 20;

/// Draws random bytes.
///
/// # Errors
/// The system gives none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// A term that no node of the old cluster has reached.
///
/// # Errors
/// As [`random`].
pub(crate) fn term_above(old: Term) -> Result<Term, String> {
    let jump = TERMS_ABOVE + u64::from(u32::from_le_bytes(random()?)) % TERMS_ABOVE;
    Ok(Term::new(old.get().saturating_add(jump)))
}

/// The members of the new cluster: `member` alone. A cluster that admitted everybody on one machine
/// is not to admit everybody on the network.
///
/// # Errors
/// The member cannot be one.
pub(crate) fn alone(
    old: &Membership,
    member: Member,
    term: Term,
) -> Result<Membership, MembershipError> {
    let is_loopback = address::is_loopback(&member.peer_addr);
    let alone = old.continued_by(member, term.get())?;
    Ok(match is_loopback {
        true => alone,
        false => alone.with_admission(Admission::Invited),
    })
}
