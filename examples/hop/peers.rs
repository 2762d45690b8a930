//! What is compared: each a chain of processes with one address to connect to.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{
    process::Process,
    ring::{Database, Node, Nodes, Postgres},
};

/// Something between load and upstream.
pub struct Subject {
    pub name: &'static str,
    /// 0: nothing, 1: a hop, 2: two.
    pub hops: u8,
    pub entry: SocketAddr,
    pub processes: Vec<Process>,
}

impl Subject {
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }
}

/// Everything that is started once for a run.
pub struct Rig {
    pub upstream: Process,
    pub at: SocketAddr,
    pub nodes: Nodes,
    pub postgres: Option<Postgres>,
    /// Where load and upstream run; the subjects have the other processor.
    pub load_cpu: usize,
    dir: tempfile::TempDir,
}

impl Rig {
    pub fn start(binary: PathBuf) -> anyhow::Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let (load_cpu, cpu) = (0, cpus - 1);
        let dir = tempfile::Builder::new().prefix("ringspan-hop-").tempdir()?;
        let at = free_address()?;
        let upstream = ourselves(&["upstream".into(), at.to_string()], load_cpu)?;
        wait_for(at)?;
        let postgres = Postgres::start(dir.path())?;
        let nodes = Nodes { binary, dir: dir.path().to_owned(), upstream: at, cpu };
        Ok(Self { upstream, at, nodes, postgres, load_cpu, dir })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn cpu(&self) -> usize {
        self.nodes.cpu
    }

    pub fn direct(&self) -> Subject {
        Subject { name: "direct", hops: 0, entry: self.at, processes: Vec::new() }
    }

    pub fn splice(&self) -> anyhow::Result<Subject> {
        let entry = free_address()?;
        let command = ["splice".into(), entry.to_string(), self.at.to_string()];
        let processes = vec![ourselves(&command, self.cpu())?];
        wait_for(entry)?;
        Ok(Subject { name: "splice", hops: 1, entry, processes })
    }

    /// One hop or two; None, aloud, where it is not installed.
    pub fn nginx(&self, hops: u8) -> anyhow::Result<Option<Subject>> {
        let name = if hops == 1 { "nginx" } else { "nginx, nginx" };
        self.chain(name, hops, "/usr/sbin/nginx", |program, at, to| {
            let dir = self.dir().join(format!("nginx-{}", at.port()));
            fs::create_dir(&dir)?;
            let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
            let text = format!(
                "{user}worker_processes 1;\npid {0}/pid;\nerror_log stderr crit;\nworker_rlimit_nofile 20000;\n\
                 events {{ worker_connections 19000; }}\n\
                 http {{\n access_log off;\n client_body_temp_path {0}/a;\n proxy_temp_path {0}/b;\n \
                 fastcgi_temp_path {0}/c;\n uwsgi_temp_path {0}/d;\n scgi_temp_path {0}/e;\n \
                 server {{\n listen {at} backlog=4096;\n location / {{\n proxy_pass http://{to};\n \
                 proxy_http_version 1.1;\n proxy_set_header Upgrade $http_upgrade;\n \
                 proxy_set_header Connection upgrade;\n proxy_read_timeout 1h;\n }}\n }}\n}}\n",
                dir.display()
            );
            let config = dir.join("nginx.conf");
            fs::write(&config, text)?;
            let config = config.display().to_string();
            let dir = dir.display().to_string();
            Ok([program, "-p", &dir, "-c", &config, "-g", "daemon off;"].map(str::to_owned).to_vec())
        })
    }

    /// One hop or two; None, aloud, where it is not installed.
    pub fn haproxy(&self, hops: u8) -> anyhow::Result<Option<Subject>> {
        let name = if hops == 1 { "haproxy" } else { "haproxy, haproxy" };
        self.chain(name, hops, "/usr/sbin/haproxy", |program, at, to| {
            let text = format!(
                "global\n nbthread 1\n maxconn 9500\n\
                 defaults\n mode http\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n \
                 timeout tunnel 1h\n\
                 listen hop\n bind {at}\n server upstream {to}\n"
            );
            let config = self.dir().join(format!("haproxy-{}.cfg", at.port()));
            fs::write(&config, text)?;
            let config = config.display().to_string();
            Ok([program, "-db", "-q", "-f", &config].map(str::to_owned).to_vec())
        })
    }

    fn chain(
        &self,
        name: &'static str,
        hops: u8,
        program: &str,
        command: impl Fn(&str, SocketAddr, SocketAddr) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<Option<Subject>> {
        if !Path::new(program).is_file() {
            eprintln!(
                "hop: {program} is not installed; left out (apt-get install nginx-light haproxy)"
            );
            return Ok(None);
        }
        let (mut processes, mut to) = (Vec::new(), self.at);
        for _ in 0..hops {
            let at = free_address()?;
            processes.push(Process::start(&command(program, at, to)?, Some(self.cpu()), None)?);
            wait_for(at)?;
            to = at;
        }
        Ok(Some(Subject { name, hops, entry: to, processes }))
    }

    /// A node of its own, which owns every session that comes to it.
    pub fn local(
        &self,
        name: &'static str,
        database: &Database,
        threads: Option<usize>,
    ) -> anyhow::Result<Subject> {
        let node = self.nodes.start(database, 100, threads)?;
        Ok(Subject { name, hops: 1, entry: node.client, processes: vec![node.process] })
    }

    /// Two nodes: clients connect to one that owns next to nothing, all but a thousandth of
    /// their sessions belongs to the other.
    pub fn forwarded(
        &self,
        name: &'static str,
        database: &Database,
        threads: Option<usize>,
    ) -> anyhow::Result<Subject> {
        let (edge, owner) = self.pair(database, threads)?;
        let processes = vec![edge.process, owner.process];
        Ok(Subject { name, hops: 2, entry: edge.client, processes })
    }

    /// The nodes of [`Self::forwarded`]: edge and owner.
    pub fn pair(
        &self,
        database: &Database,
        threads: Option<usize>,
    ) -> anyhow::Result<(Node, Node)> {
        let owner = self.nodes.start(database, 1600, threads)?;
        let edge = self.nodes.start(database, 1, threads)?;
        // The edge has seen the owner in the ring before it was ready itself.
        Ok((edge, owner))
    }
}

/// This program in another part.
pub fn ourselves(arguments: &[String], cpu: usize) -> anyhow::Result<Process> {
    let mut command = vec![std::env::current_exe()?.display().to_string()];
    command.extend_from_slice(arguments);
    Process::start(&command, Some(cpu), None)
}

/// A port that was free a moment ago.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from(([127, 0, 0, 1], free_port()?)))
}

/// Waits until somebody accepts there.
pub fn wait_for(at: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(at).is_err() {
        if Instant::now() > deadline {
            bail!("nobody listens at {at}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
