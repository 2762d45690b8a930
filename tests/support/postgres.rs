//! A throw-away Postgres for tests: one server for each test binary, one database for each
//! test, nothing left behind.
//!
//! The server is the child of a shell that waits for the end of a pipe from this process,
//! then stops the server and removes its directory. So it ends with the test binary,
//! however that ends.

use std::{
    fs::{self, File},
    io::Write as _,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, Executor, PgConnection};

/// Password of the superuser `ringspan`; asked for over TCP.
pub const PASSWORD: &str = "open-sesame-42";

/// How long a server may take to accept its first connection.
const START_LIMIT: Duration = Duration::from_mins(1);

const MISSING: &str = "these tests need Postgres and found no initdb in PG_BIN, PATH or \
    /usr/lib/postgresql/*/bin: `apt-get install postgresql`, or set PG_BIN";

/// A running server.
pub struct Server {
    pub port: u16,
    /// Of its log, password and data.
    pub dir: PathBuf,
    /// Its standard input is the pipe whose end stops the server.
    _watcher: Child,
}

impl Server {
    /// The server of this test binary, started by whoever asks first.
    ///
    /// # Panics
    /// If there is no Postgres on this machine, with what to install.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(Self::start)
    }

    /// URL of a new, empty database of the shared server.
    pub async fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut admin = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let create = format!("CREATE DATABASE {name}");
        admin.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
        admin.close().await.unwrap();
        self.url(&name)
    }

    /// Lets processes that were stopped go on.
    pub fn thaw(&self) {
        let postmaster = self.postmaster();
        for pid in children(postmaster).into_iter().chain([postmaster]) {
            kill_process(pid, Signal::CONT).ok();
        }
    }

    /// The server's first process.
    pub fn postmaster(&self) -> Pid {
        let file = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap();
        Pid::from_raw(file.lines().next().unwrap().parse().unwrap()).unwrap()
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://ringspan:{PASSWORD}@{}:{}/{database}", host(), self.port)
    }

    /// A server of its own, that ends with its handle.
    pub fn start() -> Self {
        Self::start_under(|_| Vec::new())
    }

    /// The same with further variables, given its directory.
    pub fn start_under(environment: impl FnOnce(&Path) -> Vec<(&'static str, String)>) -> Self {
        let bin = binaries();
        let dir = tempfile::Builder::new().prefix("ringspan-pg-").tempdir().unwrap().keep();
        let (data, secret) = (dir.join("data"), dir.join("password"));
        fs::write(&secret, PASSWORD).unwrap();
        give_to_postgres(&[&dir, &secret]);

        let made = unprivileged(&bin.join("initdb"))
            .args(["-U", "ringspan", "-E", "UTF8", "--no-locale", "--no-sync"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg("--pwfile")
            .arg(&secret)
            .arg("-D")
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let access = data.join("pg_hba.conf");
        let mut rules = File::options().append(true).open(access).unwrap();
        rules.write_all(b"host all all 10.0.0.0/8 scram-sha-256\n").unwrap();

        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = dir.join("log");
        let server = unprivileged(&bin.join("postgres"));
        let mut watcher = Command::new("sh")
            .args(["-c", WATCH, "sh"])
            .arg(&dir)
            .arg(server.get_program())
            .args(server.get_args())
            .arg("-D")
            .arg(&data)
            .args(options(&dir, port))
            .envs(environment(&dir))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();

        let deadline = Instant::now() + START_LIMIT;
        let ready = || {
            let mut probe = unprivileged(&bin.join("pg_isready"));
            probe.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
            probe.status().is_ok_and(|status| status.success())
        };
        while !ready() {
            let ended = watcher.try_wait().unwrap().is_some();
            let log = fs::read_to_string(&log).unwrap_or_default();
            assert!(!ended && Instant::now() < deadline, "Postgres did not start:\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
        Self { port, dir, _watcher: watcher }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Frozen processes would not hear of their end.
        if self.dir.join("data/postmaster.pid").exists() {
            self.thaw();
        }
    }
}

/// Where servers are found: `RINGSPAN_PG_HOST`, or loopback.
fn host() -> String {
    std::env::var("RINGSPAN_PG_HOST").unwrap_or_else(|_| "127.0.0.1".to_owned())
}

/// Settings of every server, as arguments.
pub fn options(dir: &Path, port: u16) -> Vec<String> {
    let (dir, port) = (dir.display(), port.to_string());
    let settings = ["fsync=off", "full_page_writes=off", "max_connections=300"];
    let hosts = match host().as_str() {
        only @ "127.0.0.1" => only.to_owned(),
        further => format!("127.0.0.1,{further}"),
    };
    let mut options: Vec<String> =
        ["-k", &dir.to_string(), "-h", &hosts, "-p", &port].map(str::to_owned).into();
    for setting in settings.into_iter().chain(["shared_buffers=32MB"]) {
        options.extend(["-c".to_owned(), setting.to_owned()]);
    }
    options
}

/// Processes whose parent is `parent`.
pub fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().to_string();
    let ours = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        fields.split(' ').nth(1) == Some(parent.as_str())
    };
    let names = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse().ok());
    pids.filter(ours).filter_map(Pid::from_raw).collect()
}

/// Runs the server until standard input ends; signals of the terminal are not for it.
const WATCH: &str = r#"
trap '' INT TERM HUP
dir=$1; shift
"$@" >"$dir/log" 2>&1 </dev/null &
server=$!
cat >/dev/null
kill -QUIT "$(head -n 1 "$dir/data/postmaster.pid")" 2>/dev/null
wait "$server"
while [ -e "$dir/data/postmaster.pid" ] && kill -0 "$(head -n 1 "$dir/data/postmaster.pid")" 2>/dev/null
do sleep 0.1
done
rm -rf -- "$dir"
"#;

/// The directory of Debian's or anyone's Postgres programs.
pub fn binaries() -> PathBuf {
    let named = std::env::var_os("PG_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut debian: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .collect();
    debian.sort();
    named
        .into_iter()
        .chain(debian.into_iter().rev())
        .chain(std::env::split_paths(&path))
        .find(|dir| ["initdb", "postgres", "pg_isready"].iter().all(|it| dir.join(it).is_file()))
        .expect(MISSING)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Postgres refuses root: then it runs as the user that its package made.
pub fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
    command.current_dir("/");
    command
}

fn give_to_postgres(paths: &[&Path]) {
    if !is_root() {
        return;
    }
    let id = |what| {
        let output = Command::new("id").args([what, "postgres"]).output().unwrap();
        assert!(output.status.success(), "as root these tests need the user `postgres`: {MISSING}");
        String::from_utf8(output.stdout).unwrap().trim().parse::<u32>().unwrap()
    };
    for path in paths {
        chown(path, Some(id("-u")), Some(id("-g"))).unwrap();
    }
}
