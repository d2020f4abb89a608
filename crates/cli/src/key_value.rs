//! `d-engine put` and `d-engine get`.

use std::io::{IsTerminal as _, Write as _};

use d_engine_kv::{KvCommand, KvReply};

use crate::args::{GetArgs, PutArgs};
use crate::exit::{Exit, Failure};

pub(crate) async fn put(args: PutArgs) -> Result<(), Failure> {
    let command = KvCommand::put(args.key, args.value).encode();
    let reply = args.cluster.client()?.propose(command).await?;
    match KvReply::decode(&reply) {
        Ok(KvReply::Done { .. }) => Ok(()),
        Ok(other) => Err(Failure::failed(format!("the put was not carried out: {other:?}"))),
        Err(error) => Err(Failure::failed(format!(
            "the reply cannot be read: {error}; does the cluster run the key-value machine?"
        ))),
    }
}

pub(crate) async fn get(args: GetArgs) -> Result<(), Failure> {
    let value = args.cluster.client()?.get(args.key.clone(), args.consistency.into()).await?;
    let Some(value) = value else {
        return Err(Failure::new(Exit::Absent, format!("{:?} has no value", args.key)));
    };
    let mut out = std::io::stdout().lock();
    let line_break: &[u8] = if out.is_terminal() { b"\n" } else { b"" };
    out.write_all(&value)
        .and_then(|()| out.write_all(line_break))
        .and_then(|()| out.flush())
        .map_err(|error| Failure::failed(format!("the value cannot be written: {error}")))
}
