//! Taking a Postgres server away, and bringing it back.

use std::process::Stdio;

use rustix::process::{Signal, kill_process};

use super::postgres::{Server, binaries, children, options, unprivileged};

impl Server {
    /// Stops the server in the middle of whatever it does, with all its processes: nobody is
    /// refused, nobody is answered.
    pub fn freeze(&self) {
        // The postmaster first, so that it starts no process that would be missed.
        let postmaster = self.postmaster();
        kill_process(postmaster, Signal::STOP).unwrap();
        for child in children(postmaster) {
            // It may have ended meanwhile.
            kill_process(child, Signal::STOP).ok();
        }
    }

    /// `pg_ctl stop -m immediate`: as after a loss of power, connections are refused.
    pub fn stop_immediate(&self) {
        self.control(&["stop", "-m", "immediate", "-w"]);
    }

    /// Starts it again at the same port, recovery included.
    pub fn start_again(&self) {
        // Of its own user: the first log is the test's.
        let log = self.dir.join("log-again");
        let options = options(&self.dir, self.port).join(" ");
        self.control(&["start", "-w", "-l", log.to_str().unwrap(), "-o", &options]);
    }

    fn control(&self, args: &[&str]) {
        let status = unprivileged(&binaries().join("pg_ctl"))
            .arg("-D")
            .arg(self.dir.join("data"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "pg_ctl {args:?}");
    }
}
