//! A network in which every node has a namespace and an address of its own, so that packets
//! can be dropped by who says them to whom, and names by which nodes find each other.
//!
//! `tests/faults/run.sh` makes the room for it, as root: a network and mounts that end with
//! the test process, of which there is one for each test. Elsewhere everything is on 127.0.0.1.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

/// Where the database listens: what the runner sets `RINGSPAN_PG_HOST` to.
pub const DATABASE: &str = "10.77.0.2";
/// Where clients and the sample upstream are.
const HERE: &str = "10.77.0.1";

/// One network for the whole process.
const BUILD: &str = r#"
set -e
ip link set lo up
ip addr add 10.77.0.1/32 dev lo
ip addr add 10.77.0.2/32 dev lo
echo 1 >/proc/sys/net/ipv4/ip_forward
mkdir -p /run/netns
mount -t tmpfs none /run/netns
cp /etc/hosts "$1"
mount --bind "$1" /etc/hosts
nft -f - <<'RULES'
table inet lab {
    set cut { type ipv4_addr . ipv4_addr; }
    chain forward { type filter hook forward priority 0; ip saddr . ip daddr @cut counter drop; }
    chain input { type filter hook input priority 0; ip saddr . ip daddr @cut counter drop; }
    chain output { type filter hook output priority 0; ip saddr . ip daddr @cut counter drop; }
}
RULES
"#;

/// A namespace for one node, joined to the others by this process's own.
const PLACE: &str = r#"
set -e
ip netns add "$1"
ip link add "to-$1" type veth peer name eth0 netns "$1"
ip link set "to-$1" up
ip route add "$2/32" dev "to-$1" src 10.77.0.1
ip -n "$1" link set lo up
ip -n "$1" link set eth0 up
ip -n "$1" addr add "$2/32" dev eth0
ip -n "$1" route add 10.77.0.1 dev eth0
ip -n "$1" route add default via 10.77.0.1 dev eth0
"#;

/// Where a node may live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its address.
    pub host: String,
    /// The file that stands for its network.
    pub namespace: PathBuf,
}

/// Whether this process has a network of its own.
pub fn is_here() -> bool {
    std::env::var_os("RINGSPAN_LAB").is_some()
}

/// The file that is `/etc/hosts` in here. Builds the network when first asked for.
fn hosts() -> &'static PathBuf {
    static HOSTS: OnceLock<PathBuf> = OnceLock::new();
    HOSTS.get_or_init(|| {
        assert!(is_here(), "this test needs a network of its own: ./test.sh faults");
        let file = tempfile::Builder::new().prefix("ringspan-hosts-").tempfile().unwrap();
        let path = file.into_temp_path().keep().unwrap();
        sh(BUILD, &[path.to_str().unwrap()]);
        path
    })
}

fn sh(script: &str, args: &[&str]) -> String {
    let output = Command::new("sh").args(["-c", script, "sh"]).args(args).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}{script}");
    out.into_owned()
}

/// Where the test's own servers listen.
pub fn here() -> &'static str {
    if is_here() {
        hosts();
        return HERE;
    }
    "127.0.0.1"
}

/// A place for one more node; None where there is but one network.
pub fn place() -> Option<Place> {
    static NEXT: AtomicU8 = AtomicU8::new(11);
    if !is_here() {
        return None;
    }
    hosts();
    let host = NEXT.fetch_add(1, Relaxed);
    let (name, host) = (format!("n{host}"), format!("10.77.0.{host}"));
    sh(PLACE, &[&name, &host]);
    Some(Place { host, namespace: format!("/run/netns/{name}").into() })
}

/// Drops from now on what `from` says to `to`.
pub fn cut(from: &str, to: &str) {
    hosts();
    sh("nft add element inet lab cut \"{ $1 . $2 }\"", &[from, to]);
}

/// Lets everything through again.
pub fn heal() {
    sh("nft flush set inet lab cut", &[]);
}

/// Packets that were dropped so far.
pub fn dropped() -> u64 {
    let rules = sh("nft list table inet lab", &[]);
    let counts = rules.split("counter packets ").skip(1);
    counts.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Lets these names stand for these addresses, and no others that were given before.
pub fn name(names: &[(&str, &str)]) {
    let mut text = "127.0.0.1 localhost\n".to_owned();
    for (name, host) in names {
        writeln!(text, "{host} {name}").unwrap();
    }
    fs::write(hosts(), text).unwrap();
}
