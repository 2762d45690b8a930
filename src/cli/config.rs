//! `ringspan config check | schema | dump`.

use std::io::{self, Write};

use super::{Exit, args::ConfigCommand};
use crate::config::{
    Env, ServeArgs,
    dump::dump,
    load::{load, load_to_show},
    reference::markdown,
    schema::schema,
    settings::Key,
};

/// Runs one command: results go to `out`, faults and warnings to `err`.
///
/// # Errors
/// Only of writing.
pub fn run(
    command: &ConfigCommand,
    env: Env<'_>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    match command {
        ConfigCommand::Schema => {
            writeln!(out, "{:#}", schema())?;
            Ok(Exit::Success)
        }
        ConfigCommand::Reference => {
            out.write_all(markdown().as_bytes())?;
            Ok(Exit::Success)
        }
        ConfigCommand::Check { file } => {
            let args = ServeArgs::default().with(Key::Config, file);
            match load(&args, env) {
                Ok(loaded) => {
                    for warning in &loaded.config.warnings {
                        writeln!(err, "warning: {warning}")?;
                    }
                    writeln!(out, "ok")?;
                    Ok(Exit::Success)
                }
                Err(faults) => refuse(&faults, err),
            }
        }
        ConfigCommand::Dump(args) => match load_to_show(args, env) {
            Ok((loaded, idle)) => {
                for fault in idle.iter() {
                    writeln!(err, "warning: `serve` refuses this: {fault}")?;
                }
                out.write_all(dump(&loaded).as_bytes())?;
                Ok(Exit::Success)
            }
            Err(faults) => refuse(&faults, err),
        },
    }
}

fn refuse(faults: &crate::config::Faults, err: &mut dyn Write) -> io::Result<Exit> {
    writeln!(err, "{faults}")?;
    Ok(Exit::Usage)
}
