//! Command versions: which ones the nodes' programs decode, and which ones the leader accepts.
//! Nothing is printed if all are 0.

use d_engine_client::NodeStatus;

/// What one node reports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Versions {
    node: u64,
    /// The highest version that its program decodes.
    decodes: u32,
    /// The highest version that it accepts, if it leads.
    takes: Option<u32>,
}

impl Versions {
    /// Returns `None` for a node that has stopped.
    pub(super) fn of(status: &NodeStatus) -> Option<Self> {
        let (decodes, takes) = (status.command_version_max, status.command_version_allowed);
        status.stopped.is_none().then_some(Self { node: status.node, decodes, takes })
    }
}

/// Formats the line below the table; `None` if every program decodes only version 0.
pub(super) fn line(nodes: &[Versions]) -> Option<String> {
    let taken = nodes.iter().filter_map(|node| node.takes).max();
    if nodes.iter().all(|node| node.decodes == 0) && taken.unwrap_or(0) == 0 {
        return None;
    }
    let each: Vec<String> =
        nodes.iter().map(|node| format!("node {} up to {}", node.node, node.decodes)).collect();
    let taken = match taken {
        Some(taken) => format!("commands up to version {taken} are accepted"),
        None => "no leader reports which command versions it accepts".to_owned(),
    };
    Some(format!("{taken}; programs decode: {}", each.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shown_only_where_a_program_knows_them() {
        let node = |node, decodes, takes| Versions { node, decodes, takes };
        assert_eq!(line(&[node(1, 0, Some(0)), node(2, 0, None)]), None);
        let during_an_upgrade = [node(1, 2, Some(1)), node(2, 1, None)];
        let expected = "commands up to version 1 are accepted; \
             programs decode: node 1 up to 2, node 2 up to 1";
        assert_eq!(line(&during_an_upgrade).as_deref(), Some(expected));
        assert!(
            line(&[node(3, 1, None)]).is_some_and(|line| line.starts_with("no leader reports"))
        );
    }
}
