//! Whose data directory a node opens: one that exists, one that founds a cluster, or one that joins
//! a cluster first.

use d_engine_core::{GroupId, NodeId};
use d_engine_replica::{Replica, StopReason};
use d_engine_storage::{
    ClusterId, Identity, Incarnation, JoinAs, MemberRole, Membership, NewMember, Reservation,
};
use d_engine_wire::JoinNumber;
use tokio::net::TcpListener;

use super::Node;
use crate::config::{self, JoinRole};
use crate::members::join::{Joined, Joiner};
use crate::node::entropy;
use crate::{ConfigError, StartError};

/// The node that opens a data directory, and what a new directory needs.
pub(super) struct Owner {
    pub(super) cluster: Option<ClusterId>,
    pub(super) node: NodeId,
    pub(super) initial: Membership,
    pub(super) incarnation: Incarnation,
}

impl Node {
    /// Finds out which node this is. If it must join a cluster first, does that. Returns the
    /// listener of a new node, whose address is known only once it listens.
    pub(super) async fn find_owner(
        &self,
        group: GroupId,
    ) -> Result<(Owner, Option<TcpListener>), StartError> {
        let storage = self.storage.clone();
        let known = blocking(move || storage.owner()).await?;
        if let Some(known) = known {
            return Ok((self.known_owner(known)?, None));
        }
        if !self.config.join.is_empty() {
            return self.join(group).await;
        }
        // The first configuration holds the port that was drawn for port 0.
        let listener = self.bind_peers().await?;
        let founder = Owner {
            cluster: self.config.cluster(),
            node: self.own_id(),
            initial: self.configured_members(listener.as_ref())?,
            incarnation: Incarnation(entropy::sixteen_bytes()?),
        };
        Ok((founder, listener))
    }

    fn own_id(&self) -> NodeId {
        NodeId::new(self.config.own_id()).unwrap_or_else(|| unreachable!("validated: not zero"))
    }

    /// The owner of an existing directory. What the configuration says must fit, as far as it says
    /// anything.
    fn known_owner(&self, known: Identity) -> Result<Owner, StartError> {
        let is_named = self.config.node_id.is_some() || !self.config.members.is_empty();
        Ok(Owner {
            cluster: self.config.cluster(),
            node: if is_named { self.own_id() } else { known.node },
            initial: known.initial,
            incarnation: known.incarnation,
        })
    }

    /// A node that founded a cluster, and still is its only member, never joins another one.
    fn refuse_a_founder_that_joins(
        &self,
        identity: &Identity,
        members: &[u64],
    ) -> Result<(), StartError> {
        let is_founder = members == [identity.node.get()] && !identity.initial.is_nobody();
        if self.config.join.is_empty() || !is_founder {
            return Ok(());
        }
        self.refused(
            "join",
            self.config.join.join(", "),
            format!(
                "the data directory {} has founded cluster {}, of which this node is the only \
                 member; remove `join`, also after a restore, or name an empty directory to join \
                 another cluster",
                self.config.data_dir.display(),
                identity.cluster
            ),
        )
    }

    /// A member of several must be reached by the others.
    fn refuse_a_member_that_does_not_listen(
        &self,
        identity: &Identity,
        members: &[u64],
    ) -> Result<(), StartError> {
        let is_alone = members.iter().all(|member| *member == identity.node.get());
        if is_alone || self.config.listens_for_peers() {
            return Ok(());
        }
        let ids: Vec<String> = members.iter().map(u64::to_string).collect();
        self.refused(
            "peer_listen",
            "not set".to_owned(),
            format!(
                "the cluster has the members {}: set the address at which they reach this node",
                ids.join(", ")
            ),
        )
    }

    fn refused(&self, field: &str, value: String, allowed: String) -> Result<(), StartError> {
        let field = field.to_owned();
        Err(StartError::Config(ConfigError::Refused { file: None, field, value, allowed }))
    }

    /// Joins a cluster under the incarnation of the reserved directory.
    async fn join(&self, group: GroupId) -> Result<(Owner, Option<TcpListener>), StartError> {
        let fresh = Incarnation(entropy::sixteen_bytes()?);
        let storage = self.storage.clone();
        let (incarnation, locks) = match blocking(move || storage.reserve(fresh)).await? {
            Reservation::Reserved { incarnation, locks } => (incarnation, locks),
            // Another process was faster; the open refuses what does not fit.
            Reservation::Owned(known) => return Ok((self.known_owner(*known)?, None)),
        };
        let Some(listener) = self.bind_peers().await? else {
            unreachable!("a node that joins listens for peers")
        };
        let (peer_addr, client_addr) = self.advertised(Some(&listener));
        let joins_as = match self.config.join_as {
            JoinRole::Learner => JoinAs::Learner,
            JoinRole::Voter => JoinAs::Voter { replaces: self.config.replaces },
        };
        let node = self.config.node_id;
        let joiner = Joiner {
            seeds: &self.config.join,
            cluster: self.config.cluster(),
            group,
            member: NewMember { node, peer_addr, client_addr, incarnation, joins_as },
            state_machine: self.machine.name().to_owned(),
            number: JoinNumber(entropy::sixteen_bytes()?),
        };
        let mut shutdown = self.shutdown.clone();
        let joined = tokio::select! {
            joined = joiner.join(&listener) => joined?,
            // Also if its sender was dropped.
            _ = shutdown.changed() => {
                return Err(StartError::Stopped(StopReason::new(crate::SHUT_DOWN)));
            }
        };
        drop(locks);
        let Joined { cluster, node, born } = joined;
        let initial = Membership::before_joining(born);
        Ok((Owner { cluster: Some(cluster), node, initial, incarnation }, Some(listener)))
    }

    /// The members from the configuration; without a list, this node alone.
    fn configured_members(&self, listener: Option<&TcpListener>) -> Result<Membership, StartError> {
        let (peer_addr, client_addr) = self.advertised(listener);
        // A single node that does not listen has no address for peers.
        let peer_addr = if self.config.listens_for_peers() { peer_addr } else { String::new() };
        Ok(self.config.membership(&peer_addr, &client_addr)?)
    }

    /// The replica with the addresses of the members that the configuration lists.
    pub(super) fn with_listed_addresses(&self, replica: Replica) -> Result<Replica, StartError> {
        match self.config.members.is_empty() {
            // Without a list there is only this node's own address, which it advertises.
            true => Ok(replica),
            false => Ok(replica.with_addresses(&self.configured_members(None)?)),
        }
    }

    /// The addresses at which other nodes and clients reach this node; empty if the configuration
    /// does not say.
    pub(super) fn advertised(&self, listener: Option<&TcpListener>) -> (String, String) {
        let config = &self.config;
        let (peer, client) = config.listed_addresses();
        let bound = listener.and_then(|listener| listener.local_addr().ok());
        // The port that was drawn for port 0. A host name is kept as it was written.
        let listens = config.peer_listen_addr();
        let drawn = bound.filter(|_| listens.ends_with(":0")).map(|bound| bound.to_string());
        let peer = config.advertise_peer.clone().or(peer).or(drawn);
        let client = config.advertise_client.clone().or(client);
        let listened = |address: &str| {
            if config::can_be_dialled(address) { address.to_owned() } else { String::new() }
        };
        let clients = config.client_listen_addr().unwrap_or_default();
        (peer.unwrap_or_else(|| listened(listens)), client.unwrap_or_else(|| listened(clients)))
    }

    /// Refuses to start a node that was removed or whose configuration does not fit the members,
    /// and names what `members` says that is not so.
    pub(super) fn check_members(
        &self,
        identity: &Identity,
        replica: &Replica,
    ) -> Result<(), StartError> {
        if let Some(by) = replica.removed() {
            return Err(StartError::DirectoryRemoved {
                dir: self.config.data_dir.clone(),
                node: identity.node.get(),
                by: by.to_string(),
            });
        }
        let ids = replica.membership().members().iter().map(|member| member.node);
        let (known, listed): (Vec<u64>, Vec<u64>) =
            (ids.collect(), self.config.members.iter().map(|member| member.id).collect());
        self.refuse_a_founder_that_joins(identity, &known)?;
        self.refuse_a_member_that_does_not_listen(identity, &known)?;
        let replaced = self.config.replaces.and_then(NodeId::new);
        let own_role = replica.membership().member(identity.node).map(|own| own.role);
        let is_asked = |replaced: &NodeId| {
            own_role != Some(MemberRole::Joining { replaces: Some(replaced.get()) })
                && replica.membership().configuration().is_voter(*replaced)
        };
        if let Some(replaced) = replaced.filter(is_asked) {
            let node = identity.node;
            tracing::warn!(
                "`replaces = {replaced}` is read only when a node joins, and node {node} is a \
                 member already; to replace node {replaced} by it: d-engine member replace \
                 {replaced} --with {node}"
            );
        }
        if !listed.is_empty() && listed.iter().any(|id| !known.contains(id)) {
            tracing::warn!(
                ?listed, members = ?known,
                "`members` lists nodes that are not members; it is read only at the first start of \
                 a cluster. To add a node, start it with `join`"
            );
        }
        Ok(())
    }

    /// Listens for other nodes, if this node is to.
    pub(super) async fn bind_peers(&self) -> Result<Option<TcpListener>, StartError> {
        if !self.config.listens_for_peers() {
            return Ok(None);
        }
        let address = self.config.peer_listen_addr();
        let bound = TcpListener::bind(address).await;
        bound.map(Some).map_err(|source| StartError::Bind {
            whom: "peers",
            address: address.to_owned(),
            source,
        })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, d_engine_storage::StorageError> + Send + 'static,
) -> Result<T, StartError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| StartError::Stopped(StopReason::new(error)))??)
}
