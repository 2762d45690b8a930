//! The program: reads the command line, runs one command and ends with its status.

use std::process::ExitCode;

use ringspan::cli;

/// In a static binary only: that of musl takes one lock for all threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(cli::parse()).into()
}
