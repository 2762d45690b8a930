//! Proof, better than an expired lease, that a process of this machine is dead.
//!
//! Local development and single-host set-ups restart within seconds; a node that can see
//! its predecessor's process need not wait for its lease. Only the kernel's word counts:
//! same boot, same pid namespace, and the process is gone. Where anything is unknown there
//! is no proof and the lease decides.
//!
//! *Limit:* virtual machines resumed from one memory snapshot share their boot id. Ring
//! members must not be snapshot clones of each other.

use std::{fs, io, path::Path};

use rustix::process::{Pid, test_kill_process};

/// Identity of this process for [`is_proven_dead`]:
/// `linux:{boot id}:{pid namespace}-{time namespace}:{pid}:{start time}`. Empty where the
/// platform does not tell, which proves nothing to anybody.
///
/// The time namespace is part of it because start times are shown relative to it.
#[must_use]
pub fn identity() -> String {
    if cfg!(feature = "simulation") {
        // All nodes are one process, whose life says nothing of theirs.
        return String::new();
    }
    identity_of(std::process::id()).unwrap_or_default()
}

/// Whether the process that gave `identity` of itself has certainly ended, with all its
/// threads. False means "not known to be dead".
///
/// A zombie whose last thread has exited is dead: its sockets are closed, and a parent that
/// never reaps it (a container's first process, often) must not keep its sessions.
#[must_use]
pub fn is_proven_dead(identity: &str) -> bool {
    let Some((machine, process)) = split(identity) else { return false };
    if this_machine().is_none_or(|ours| ours != machine) {
        return false;
    }
    match Stat::read(process.pid) {
        Ok(stat) => stat.start_time != process.start_time || (stat.zombie && stat.threads <= 1),
        // A hardened /proc (`hidepid`) hides living processes too; a signal of nothing
        // tells them apart.
        Err(error) if error.kind() == io::ErrorKind::NotFound => process.is_absent(),
        Err(_) => false,
    }
}

fn identity_of(pid: u32) -> Option<String> {
    let machine = this_machine()?;
    let stat = Stat::read(pid).ok()?;
    Some(format!("{machine}:{pid}:{}", stat.start_time))
}

/// Boot and namespaces, within which a pid and its start time name one process. None if
/// `/proc` is missing or shows another pid namespace than our own.
fn this_machine() -> Option<String> {
    if fs::read_link("/proc/self").ok()? != Path::new(&std::process::id().to_string()) {
        return None;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let pids = namespace("pid")?;
    // Kernels before 5.6 have no time namespaces.
    let times = namespace("time").unwrap_or_else(|| "0".into());
    Some(format!("linux:{}:{pids}-{times}", boot.trim()))
}

/// Inode number of a namespace of ours, from a link like `pid:[4026531836]`.
fn namespace(kind: &str) -> Option<String> {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
    let inode = link.to_str()?.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?;
    Some(inode.into())
}

struct Process {
    pid: u32,
    /// Clock ticks since boot.
    start_time: u64,
}

impl Process {
    /// Whether the kernel knows no process of this pid.
    fn is_absent(&self) -> bool {
        i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
    }
}

/// An identity in its machine's part and its process's.
fn split(identity: &str) -> Option<(&str, Process)> {
    let (rest, start_time) = identity.rsplit_once(':')?;
    let (machine, pid) = rest.rsplit_once(':')?;
    Some((machine, Process { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? }))
}

/// What `/proc/<pid>/stat` says of a process.
struct Stat {
    zombie: bool,
    threads: u64,
    /// Clock ticks since boot.
    start_time: u64,
}

impl Stat {
    /// Fails with `NotFound` if the process is gone or hidden from us.
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat")).map_err(|error| {
            // A process that ends between the opening and the reading.
            let gone = error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error());
            if gone { io::ErrorKind::NotFound.into() } else { error }
        })?;
        Self::parse(&String::from_utf8_lossy(&text)).ok_or(io::ErrorKind::InvalidData.into())
    }

    /// The fields are numbered as in `proc_pid_stat(5)`. The second, the command in brackets,
    /// may itself hold spaces and brackets: the rest begins after the last.
    fn parse(text: &str) -> Option<Self> {
        const STATE: usize = 3;
        let (_, fields) = text.rsplit_once(") ")?;
        let field = |number: usize| fields.split_ascii_whitespace().nth(number - STATE);
        Some(Self {
            zombie: matches!(field(STATE)?, "Z" | "X" | "x"),
            threads: field(20)?.parse().ok()?,
            start_time: field(22)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
pub(super) mod tests {
    use std::process::{Child, Command};

    use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process, waitid};

    use super::*;

    fn child() -> (Child, String) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let identity = identity_of(child.id()).unwrap();
        (child, identity)
    }

    /// Identity of a process that has ended.
    pub(in crate::ownership) fn ended() -> String {
        let (mut child, identity) = child();
        child.kill().unwrap();
        child.wait().unwrap();
        identity
    }

    fn pid(child: &Child) -> Pid {
        Pid::from_child(child)
    }

    #[test]
    fn a_killed_child_is_proven_dead_before_and_after_it_is_reaped() {
        let (mut child, identity) = child();
        assert!(!is_proven_dead(&identity));
        child.kill().unwrap();
        let leave_it_a_zombie = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid(&child)), leave_it_a_zombie).unwrap();
        assert!(is_proven_dead(&identity), "a zombie");
        child.wait().unwrap();
        assert!(is_proven_dead(&identity), "reaped");
    }

    #[test]
    fn a_stopped_process_is_not_dead() {
        let (mut child, identity) = child();
        kill_process(pid(&child), Signal::STOP).unwrap();
        waitid(WaitId::Pid(pid(&child)), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).unwrap();
        let dead = is_proven_dead(&identity);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!dead);
    }

    #[test]
    fn a_pid_that_another_process_has_now_proves_the_first_dead() {
        let (machine, me) =
            identity().rsplit_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let earlier = me.parse::<u64>().unwrap() - 1;
        assert!(is_proven_dead(&format!("{machine}:{earlier}")));
    }

    #[test]
    fn the_living_are_not_dead() {
        assert!(!identity().is_empty());
        assert!(!is_proven_dead(&identity()));
    }

    #[test]
    fn another_boot_another_namespace_and_nonsense_prove_nothing() {
        let identity = ended();
        assert!(is_proven_dead(&identity));
        let fields: Vec<&str> = identity.split(':').collect();
        for (field, other) in [(0, "plan9"), (1, "another-boot"), (2, "1-2"), (3, "x"), (4, "")] {
            let mut fields = fields.clone();
            fields[field] = other;
            assert!(!is_proven_dead(&fields.join(":")), "{fields:?}");
        }
        for nonsense in ["", ":", "linux", "linux:::0:0"] {
            assert!(!is_proven_dead(nonsense), "{nonsense:?}");
        }
    }

    #[test]
    fn a_command_with_brackets_does_not_shift_the_fields() {
        let rest = "Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 1 18 777 20";
        let stat = Stat::parse(&format!("42 (a) b) S 1 (c) {rest}\n")).unwrap();
        assert_eq!((stat.zombie, stat.threads, stat.start_time), (true, 1, 777));
        assert!(Stat::parse("42 (cut").is_none());
    }
}
