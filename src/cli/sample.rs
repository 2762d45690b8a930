//! `ringspan sample-upstream`.

use std::io::{self, Write as _};

use anyhow::Context as _;

use super::{Exit, args::SampleUpstreamArgs, env, signals::Signals};
use crate::{
    config::Secret,
    net::TcpListener,
    sample::{self, SampleAuth, SampleOptions},
};

/// What it answers to, for `--help`.
pub(super) const HELP: &str = "\
Endpoints:
  /v1/responses           Responses API: WebSocket upgrade, or POST (stream:true is SSE, else JSON)
  /v1/models              a list of one model
  /backend-api/codex/…    the same two under the path of ChatGPT accounts
  /echo?greet=N           WebSocket: N text messages first, then echoes text, binary, close
  /stream?frames=N&bytes=B&delay_ms=D
                          WebSocket: N text frames of B bytes, D ms apart, then echoes
  /_sample/connections    JSON history of connections and their creates, for checkers
  /_sample/health         200 once it serves

Directives, anywhere in the last user message of a turn:
  [deltas=20] [bytes=40] [delay=5ms]
                          number of text deltas, bytes in each, pause before each
  [tool=shell:echo hi]    calls the offered tool of that name, else the first that runs commands
  [incomplete]            ends with response.incomplete, reason max_output_tokens
  [hang]                  nothing after response.in_progress, until interrupted or left
  [fail=500]              refused with that status before anything was created
  [error=server_is_overloaded]
                          response.failed with that code after response.created
  [close=1011] [close_after=3]
                          closes with that code after so many deltas; 0 drops the socket
  [reset]                 as [close], by a reset
  [close_first]           with [close] or [reset]: before any event of the turn
  [lie=foreign]           events of an unknown response id around its own
  [lie=duplicate]         the terminal event twice; plain [lie] does both
  [once]                  misbehaves only the first time this conversation is seen

Examples:
  ringspan sample-upstream
  ringspan serve --migrate-on-start --upstream http://127.0.0.1:9000";

/// Serves until it is told to end.
pub(super) async fn run(args: SampleUpstreamArgs) -> anyhow::Result<Exit> {
    let auth = match (&args.bearer_env, args.any_bearer) {
        (Some(name), _) => {
            let token = env(name).filter(|token| !token.is_empty());
            SampleAuth::Bearer(Secret::new(token.with_context(|| format!("{name} is not set"))?))
        }
        (None, true) => SampleAuth::AnyBearer,
        (None, false) => SampleAuth::Open,
    };
    let model = args.model.unwrap_or_else(|| SampleOptions::default().model);
    let SampleUpstreamArgs { max_connection_age, cut_at_age, .. } = args;
    let options = SampleOptions { auth, model, max_connection_age, cut_at_age };
    let mut signals = Signals::new()?;
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", args.listen))?;
    let at = listener.local_addr()?;
    // Whoever reads stdout may leave after the first line: that is no reason to stop.
    let _ = write!(
        io::stdout(),
        "Responses API  http://{at}/v1/responses\n\
         WebSockets     ws://{at}/echo  ws://{at}/stream?frames=10&bytes=100\n\
         history        http://{at}/_sample/connections\n"
    );
    sample::serve(listener, options, signals.recv()).await?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use super::HELP;

    #[test]
    fn help_names_every_endpoint_and_directive_that_the_sample_documents() {
        let rows = include_str!("../sample/mod.rs").lines();
        let cells = rows.filter_map(|line| line.strip_prefix("//! | `")?.split(" |").next());
        let names: Vec<_> = cells
            .flat_map(|cell| cell.split('`'))
            .filter(|name| name.starts_with(['/', '[']))
            .collect();
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            assert!(HELP.contains(name), "{name}");
        }
    }
}
