//! What a new ring is introduced with: its addresses, what to try, and one message that is
//! forwarded before the user's eyes.

use std::{fmt::Write as _, time::Duration};

use anyhow::Context as _;
use tokio::time::Instant;

use super::{Member, plan::Plan};
use crate::{
    admin::client::Client,
    cli::selfcheck::{self, Target, millis},
    config::url::redact,
};

/// The route that the demonstration uses, of those in the plan.
const ROUTE: &str = "/rooms/{room}";

/// Addresses, and what to try.
pub(super) fn summary(plan: &Plan, members: &[Member], took: Duration) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_summary(&mut text, plan, members, took);
    text
}

fn write_summary(
    text: &mut String,
    plan: &Plan,
    members: &[Member],
    took: Duration,
) -> std::fmt::Result {
    writeln!(text, "ringspan dev: {} nodes, ready in {:.1}s\n", members.len(), took.as_secs_f64())?;
    let width = members.iter().map(|it| it.name.len()).max().unwrap_or_default();
    writeln!(
        text,
        "  {:width$}  {:29}  {:29}  {:21}  process",
        "node", "clients", "status page, API, metrics", "peers (gRPC)"
    )?;
    for Member { name, pid, at } in members {
        let (client, admin) = (format!("http://{}", at.client), format!("http://{}/", at.admin));
        let peer = at.peer.to_string();
        writeln!(text, "  {name:width$}  {client:29}  {admin:29}  {peer:21}  {pid}")?;
    }
    let sample = plan.sample;
    writeln!(text)?;
    match &plan.upstream {
        Some(url) => writeln!(text, "  upstream  {}", redact(url))?,
        None => writeln!(text, "  upstream  http://{sample}/v1/responses (the sample upstream)")?,
    }
    writeln!(
        text,
        "  echo      ws://{sample}/echo (the sample upstream), behind /rooms/{{room}} and /echo"
    )?;
    writeln!(text, "  database  {} (removed at the end)\n", plan.database_url)?;
    let moved: Vec<_> = plan.nodes.iter().filter(|node| node.moved()).map(|it| &*it.name).collect();
    if !moved.is_empty() {
        writeln!(
            text,
            "  the usual ports were in use, so others were taken: {}\n",
            moved.join(", ")
        )?;
    }
    match members {
        [] => Ok(()),
        [one, .., other] | [one @ other] => what_to_try(text, one, other),
    }
}

fn what_to_try(text: &mut String, one: &Member, other: &Member) -> std::fmt::Result {
    let (client, admin) = (one.at.client, one.at.admin);
    let program = std::env::args().next().unwrap_or_else(|| "ringspan".to_owned());
    writeln!(
        text,
        r#"Try
  a turn, streamed:
    curl -N http://{client}/v1/responses -H 'content-type: application/json' \
      -d '{{"model":"gpt-5.5","input":"hello","stream":true}}'

  one session from two nodes; what one terminal says, the other hears:
    npx wscat -c ws://{client}/rooms/demo
    npx wscat -c ws://{}/rooms/demo

  Codex, with this in $CODEX_HOME/config.toml:
    model = "gpt-5.5"
    model_provider = "ring"
    [model_providers.ring]
    name = "ring"
    base_url = "http://{client}/v1"
    wire_api = "responses"
    env_key = "RING_KEY"
    supports_websockets = true
  and then: RING_KEY=any codex exec --skip-git-repo-check "hello"

  the ring, its sessions, both live:
    {program} ring --admin-url http://{admin}
    {program} sessions --admin-url http://{admin}
    {program} top --admin-url http://{admin}

  a crash (sessions are taken over at their next use) and a drain:
    kill -9 {}
    {program} drain {} --admin-url http://{admin}
"#,
        other.at.client, other.pid, one.name
    )
}

/// Attaches to one session by its owner and by another node, has the other node forward a
/// message, and tells of it.
pub(super) async fn forwarding(members: &[Member]) -> anyhow::Result<String> {
    let [first, second, ..] = members else {
        return Ok("One node alone has nobody to forward to; more with --nodes.\n".to_owned());
    };
    let first_base = selfcheck::base(first.at.client)?;
    let target = Target::new(&first_base, ROUTE, None);
    let mut by_first = target.attach().await.with_context(|| format!("at {}", first.name))?;
    let admin = Client::new(&first.at.admin.to_string())?;
    let info = admin.session(&by_first.session).await?;
    let owner = info.owner_node.context("the session has no owner")?;
    // The two of them are the owner and a forwarder, whichever the owner is.
    let partner = match members.iter().find(|member| member.name == owner) {
        Some(member) if member.name != first.name => member,
        _ => second,
    };
    let target = target.via(&selfcheck::base(partner.at.client)?);
    let mut by_partner = target.attach().await.with_context(|| format!("at {}", partner.name))?;
    anyhow::ensure!(
        by_partner.session == by_first.session,
        "{} and {} opened two sessions for one key",
        first.name,
        partner.name
    );
    let forwards_first = owner != first.name;
    let forwarder = if forwards_first { first } else { partner };
    let (by_forwarder, by_owner) = if forwards_first {
        (&mut by_first, &mut by_partner)
    } else {
        (&mut by_partner, &mut by_first)
    };
    let begun = Instant::now();
    by_forwarder.say("hello").await?;
    by_forwarder.hear_text("hello").await?;
    let took = begun.elapsed();
    by_owner.hear_text("hello").await.context("the owner's own client heard nothing")?;
    let text = format!(
        "Forwarding, just now: session {} (epoch {}) of {ROUTE} is owned by {owner}.\n\
         A message said to {} went to {owner}, the upstream and back in {};\n\
         the client at {owner} heard it too.\n\n",
        by_first.session,
        by_first.epoch,
        forwarder.name,
        millis(took),
    );
    by_first.close().await;
    by_partner.close().await;
    Ok(text)
}
