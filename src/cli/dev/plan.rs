//! Which processes there are to be: names, ports, flags, files.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use tokio::process::Command;

use crate::{
    cli::serve::EXIT_WITH_PARENT,
    config::settings::{Key, SETTINGS, Section},
};

/// Ports of the first node; the following nodes take the following ports, where free.
const CLIENT_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 9090;

/// Settings that make a ring of one machine pleasant: nodes see each other at once, and
/// Ctrl-C does not take long.
const SETTINGS_OF_DEV: [(Key, &str); 4] = [
    (Key::RingPoll, "500ms"),
    (Key::DrainDwell, "0s"),
    (Key::DrainTimeout, "5s"),
    (Key::DrainCleanup, "1s"),
];

/// A directory that only this user can read, removed with everything in it when dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> io::Result<Self> {
        let name = format!("ringspan-dev-{:08x}", rand::random::<u32>());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in a directory for such things.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A node that is to be.
pub(super) struct Planned {
    pub(super) name: String,
    client: SocketAddr,
    admin: SocketAddr,
}

impl Planned {
    /// Whether a port that it should have had was in use.
    pub(super) fn moved(&self) -> bool {
        self.client == any_port() || self.admin == any_port()
    }
}

/// All that is to be.
pub(super) struct Plan {
    pub(super) nodes: Vec<Planned>,
    pub(super) database_url: String,
    /// Where the sample upstream answers.
    pub(super) sample: SocketAddr,
    /// Upstream of the Responses route, if it is not the sample.
    pub(super) upstream: Option<String>,
    config: PathBuf,
    /// Shared by the nodes, new each time.
    token: String,
}

impl Plan {
    /// Chooses ports and writes the configuration file.
    pub(super) fn new(
        scratch: &Scratch,
        count: u16,
        sample: SocketAddr,
        upstream: Option<String>,
    ) -> anyhow::Result<Self> {
        let nodes = (0..count)
            .map(|index| Planned {
                name: format!("node-{}", index + 1),
                client: free_or_any(CLIENT_PORT + index),
                admin: free_or_any(ADMIN_PORT + index),
            })
            .collect();
        let config = scratch.path().join("ringspan.toml");
        fs::write(&config, routes(sample)).context("no configuration file")?;
        let database_url = format!("sqlite://{}", scratch.path().join("ringspan.db").display());
        let token = format!("{:032x}", rand::random::<u128>());
        Ok(Self { nodes, database_url, sample, upstream, config, token })
    }

    /// Leaves the ports of a node to the kernel. False if they were.
    pub(super) fn move_elsewhere(&mut self, index: usize) -> bool {
        let node = &mut self.nodes[index];
        let had_a_port = node.client != any_port() || node.admin != any_port();
        (node.client, node.admin) = (any_port(), any_port());
        had_a_port
    }

    /// The process of one node.
    pub(super) fn command(&self, index: usize) -> anyhow::Result<Command> {
        let program = std::env::current_exe().context("this program's own path is not known")?;
        let mut command = Command::new(program);
        command.arg("serve");
        for (key, value) in self.settings(&self.nodes[index]) {
            command.arg(format!("--{}={value}", key.setting().name));
        }
        // What the user's environment says of one node cannot hold for all of these; what
        // it says of limits, logs and the like can.
        for setting in SETTINGS {
            if matches!(setting.section, Section::Node | Section::Database | Section::Peers)
                || setting.key == Key::Upstream
            {
                command.env_remove(setting.env());
            }
        }
        command
            .env_remove("POD_UID")
            .env(Key::PeerToken.setting().env(), &self.token)
            .env(EXIT_WITH_PARENT, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal goes to a whole group; the nodes are to drain, once, when
            // this process says so.
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    fn settings(&self, node: &Planned) -> Vec<(Key, String)> {
        let sample = format!("ws://{}/v1/responses", self.sample);
        let mut settings = vec![
            (Key::Config, self.config.display().to_string()),
            (Key::NodeId, node.name.clone()),
            (Key::Listen, node.client.to_string()),
            (Key::PeerListen, any_port().to_string()),
            (Key::AdminListen, node.admin.to_string()),
            (Key::DatabaseUrl, self.database_url.clone()),
            (Key::Upstream, self.upstream.clone().unwrap_or(sample)),
        ];
        settings.extend(SETTINGS_OF_DEV.map(|(key, value)| (key, value.to_owned())));
        settings
    }
}

/// Routes to try forwarding with: what one client says, all clients of its session hear.
fn routes(sample: SocketAddr) -> String {
    format!(
        r#"[[upstream]]
name = "echo"
url = "ws://{sample}/echo"

[[route]]
path = "/rooms/{{room}}"
profile = "opaque"
upstream = "echo"
session_key = ["path:room"]

[[route]]
path = "/echo"
profile = "opaque"
upstream = "echo"
session_key = ["query:session"]
"#
    )
}

/// `port` of loopback if nobody listens there, else whichever the kernel will choose.
fn free_or_any(port: u16) -> SocketAddr {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // Taken between this look and the node's own attempt, it is a failure that is reported.
    if TcpListener::bind(wanted).is_ok() { wanted } else { any_port() }
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ServeArgs};

    #[test]
    fn every_node_gets_a_configuration_that_serve_accepts() {
        let scratch = Scratch::new().unwrap();
        let sample = SocketAddr::from(([127, 0, 0, 1], 9000));
        for upstream in [None, Some("wss://api.openai.com/v1/responses".to_owned())] {
            let plan = Plan::new(&scratch, 3, sample, upstream).unwrap();
            for node in &plan.nodes {
                let settings = plan.settings(node).into_iter();
                let args = settings.fold(ServeArgs::default(), |args, (k, v)| args.with(k, v));
                let token =
                    |name: &str| (name == "RINGSPAN_PEER_TOKEN").then(|| plan.token.clone());
                let config = Config::load(&args, &token).unwrap();
                assert_eq!(config.node.id, node.name);
                assert_eq!(config.warnings, Vec::<String>::new());
                let paths: Vec<_> = config.routes.iter().map(|route| route.path.as_str()).collect();
                assert!(paths.contains(&"/rooms/{room}"), "{paths:?}");
                assert!(paths.contains(&"/v1/responses"), "{paths:?}");
            }
        }
    }

    #[test]
    fn a_port_in_use_is_left_alone() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(free_or_any(taken.local_addr().unwrap().port()), any_port());
    }

    #[test]
    fn the_scratch_directory_goes_with_its_owner() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("x"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
