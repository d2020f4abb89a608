//! The configurations of a cluster on this machine.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::check::refused;
use super::ports::free_loopback_ports;
use super::{Config, ConfigError, MemberConfig, absolute};

impl Config {
    /// Returns the configurations of `nodes` nodes with the ids 1, 2, ... on this machine: for
    /// tests, for trying things out, and for several nodes in one process. They keep their data in
    /// `dir/node-1`, `dir/node-2`, ..., talk to each other on free ports of loopback, and serve no
    /// network clients; everything else has its default. Change what you need.
    ///
    /// A later call with the same `dir` and number returns the same cluster on other ports, so the
    /// nodes can be started again on their data. A cluster is recognized by the absolute path of
    /// `dir`: after `dir` has been moved, its nodes refuse to start with these configurations.
    ///
    /// The ports are free when this returns, and are not held: start the nodes soon. Later calls in
    /// this process return other ports. If another process takes one of them meanwhile, the start
    /// of that node fails with an error that names the address.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let directory = directory.path();
    /// let configs = d_engine_server::Config::local_cluster(directory, 3)?;
    /// assert_eq!(configs.len(), 3);
    /// assert_eq!(configs[1].node_id, Some(2));
    /// assert_eq!(configs[1].data_dir, directory.join("node-2"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ConfigError::Refused`] if `nodes` is 0 or `dir` cannot be used, and
    /// [`ConfigError::NoPorts`].
    pub fn local_cluster(dir: impl AsRef<Path>, nodes: u64) -> Result<Vec<Self>, ConfigError> {
        let dir = dir.as_ref();
        if nodes == 0 {
            return Err(refused("nodes", nodes, "a cluster has at least one node"));
        }
        let members = members(nodes).map_err(|source| ConfigError::NoPorts { source })?;
        let configs: Vec<Self> = (1..=nodes)
            .map(|node_id| Self {
                node_id: Some(node_id),
                cluster_id: Some(cluster_id(dir)),
                data_dir: dir.join(format!("node-{node_id}")),
                members: members.clone(),
                ..Self::default()
            })
            .collect();
        configs.iter().try_for_each(Self::validate)?;
        Ok(configs)
    }
}

fn members(nodes: u64) -> io::Result<Vec<MemberConfig>> {
    // More than there are ports is an error in any case.
    let ports = free_loopback_ports(usize::try_from(nodes).unwrap_or(usize::MAX))?;
    let member = |(listener, id): (&std::net::TcpListener, u64)| {
        let peer_addr = listener.local_addr()?.to_string();
        Ok(MemberConfig { id, peer_addr, client_addr: String::new() })
    };
    ports.iter().zip(1..).map(member).collect()
}

/// Two clusters must not have one id: a node that still dials the port of a stopped one would talk
/// to the node of another cluster that has been given this port.
fn cluster_id(dir: &Path) -> String {
    // Collected from its parts: "dir/" and "dir" are one directory.
    let dir: PathBuf = absolute(dir).components().collect();
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_of_a_local_cluster_knows_all_and_has_a_directory_and_a_port_of_its_own() {
        let configs = Config::local_cluster("some/dir", 3).unwrap();
        for (config, id) in configs.iter().zip(1..) {
            config.validate().unwrap();
            assert_eq!(config.node_id, Some(id));
            assert_eq!(config.data_dir, Path::new("some/dir").join(format!("node-{id}")));
            assert_eq!(
                (&config.members, &config.cluster_id),
                (&configs[0].members, &configs[0].cluster_id)
            );
            assert!(config.peer_listen_addr().starts_with("127.0.0.1:"));
            assert_eq!(config.client_listen_addr(), None);
        }
        // `validate` refuses two members with one address.
        assert_eq!(
            configs[0].members.iter().map(|member| member.id).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert_eq!(Config::local_cluster("some/dir", 1).unwrap().len(), 1);
    }

    #[test]
    fn a_local_cluster_is_the_same_after_a_restart_and_another_one_elsewhere() {
        let id = |dir: &str| Config::local_cluster(dir, 2).unwrap()[0].cluster().unwrap();
        assert_eq!(id("some/dir"), id("some/dir/"));
        let absolute = std::path::absolute("some/dir").unwrap();
        assert_eq!(id("some/dir"), id(absolute.to_str().unwrap()));
        assert_ne!(id("some/dir"), id("some/other"));
    }

    #[test]
    fn a_local_cluster_that_cannot_be_is_refused_with_the_reason() {
        let refused = |dir: &str, nodes| Config::local_cluster(dir, nodes).unwrap_err().to_string();
        assert_eq!(refused("some/dir", 0), "`nodes` is 0; a cluster has at least one node");
        assert!(refused("~/dir", 3).contains("`~` is not expanded"));
        assert!(refused("some/dir", u64::MAX).contains("free ports"));
    }
}
