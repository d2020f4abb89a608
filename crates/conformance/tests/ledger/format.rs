//! The ledger's file and its commands, as text.

use std::collections::HashMap;

use d_engine_state_machine::{Error, LogId, Result, SnapshotMetadata};

use super::{Fault, State};

pub(super) fn command(data: &[u8]) -> Result<(&str, u64, Option<u64>)> {
    let fields: Vec<&str> = std::str::from_utf8(data)?.split(' ').collect();
    match fields[..] {
        [name, amount] => Ok((name, amount.parse()?, None)),
        [name, amount, after_ms] => Ok((name, amount.parse()?, Some(after_ms.parse()?))),
        _ => Err(Error::msg("no command")),
    }
}

/// FNV-1a, which detects any single flipped bit.
pub(super) fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}

pub(super) fn encode(state: &State, unordered: bool) -> String {
    let mut lines = vec![format!("at {} {}", state.last.term, state.last.index)];
    if let Some(meta) = &state.snapshot {
        lines.push(format!(
            "snapshot {} {} {}",
            meta.last_included.term, meta.last_included.index, meta.checksum[0]
        ));
    }
    let line = |(name, balance): (&String, &u64)| format!("{name} {balance}");
    if unordered {
        lines.extend(state.balances.iter().collect::<HashMap<_, _>>().into_iter().map(line));
    } else {
        lines.extend(state.balances.iter().map(line));
    }
    lines.push(format!("time {}", state.time_ms));
    lines.extend(
        state
            .reserved
            .iter()
            .map(|((until, name), amount)| format!("reserved {name} {amount} {until}")),
    );
    let text = lines.join("\n");
    let sum = checksum(&text);
    format!("{text}\nend {sum}")
}

pub(super) fn decode(fault: Fault, text: &str) -> Result<State> {
    let mut state = State::default();
    decode_into(fault, text, &mut state)?;
    Ok(state)
}

pub(super) fn decode_into(fault: Fault, text: &str, state: &mut State) -> Result<()> {
    let mut ended = false;
    let sum = text.rsplit_once("\nend ").map_or(0, |(before, _)| checksum(before));
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["at", term, index] => state.last = LogId::of(term.parse()?, index.parse()?),
            ["snapshot", term, index, first] => {
                let last_included = LogId::of(term.parse()?, index.parse()?);
                state.snapshot = Some(SnapshotMetadata::new(last_included, [first.parse()?; 32]));
            }
            ["end", found] => ended = fault == Fault::ServesFlippedBits || found.parse() == Ok(sum),
            ["time", time_ms] => state.time_ms = time_ms.parse()?,
            ["reserved", name, amount, until] => {
                state.reserved.insert((until.parse()?, name.to_owned()), amount.parse()?);
            }
            [name, balance] => {
                state.balances.insert(name.to_owned(), balance.parse()?);
            }
            _ => return Err(Error::msg("this is not a line of a ledger")),
        }
    }
    if ended { Ok(()) } else { Err(Error::msg("the ledger has no end line")) }
}
