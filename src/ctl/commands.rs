//! What can be asked for on the command line.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand};
use forgejo_mcp_broker::admin::api::{Expiry, NewList};

/// Operates a running forgejo-mcp-broker.
#[derive(Debug, Parser)]
#[command(name = "forgejo-mcp-brokerctl", version)]
pub(crate) struct Options {
    /// The broker's operator socket.
    #[arg(long, value_name = "PATH", default_value = "/run/forgejo-mcp-broker/admin.sock", global = true)]
    pub(crate) socket: PathBuf,
    /// Print JSON on standard output, as forgejo-mcp-brokerctl(8) describes it.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What runs, and what separates the users' processes.
    Status,
    /// Look at everything that is needed, and say what to do where something is wrong.
    Doctor(Files),
    /// List open sessions, the newest first.
    Sessions(OfUser),
    /// One session.
    #[command(subcommand)]
    Session(SessionCommand),
    /// List everybody who was ever here, by their number in Forgejo.
    Users,
    /// One user, and all that they have.
    #[command(subcommand)]
    User(UserCommand),
    /// List the clients that are known.
    Clients,
    /// List what users gave clients, the newest first.
    Grants(OfUser),
    /// One grant.
    #[command(subcommand)]
    Grant(GrantCommand),
    /// Tokens without OAuth, for services.
    #[command(subcommand)]
    Token(TokenCommand),
    /// The key that seals Forgejo's tokens.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Write a consistent copy of the database, while everything goes on.
    Backup {
        /// A file that is not there yet.
        path: PathBuf,
    },
    /// Write an archive for a bug report, with names, addresses and secrets taken out.
    Support {
        /// A file that is not there yet.
        path: PathBuf,
        #[command(flatten)]
        files: Files,
    },
}

#[derive(Debug, Args)]
pub(crate) struct OfUser {
    /// Only those of this user: the login, or id:NUMBER.
    #[arg(long, value_name = "LOGIN")]
    pub(crate) user: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Files {
    /// The broker's configuration; may be repeated.
    #[arg(long, value_name = "FILE", default_value = "/etc/forgejo-mcp-broker/broker.toml")]
    pub(crate) broker_config: Vec<PathBuf>,
    /// The supervisor's; may be repeated.
    #[arg(long, value_name = "FILE", default_value = "/etc/forgejo-mcp-broker/supervisor.toml")]
    pub(crate) supervisor_config: Vec<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// End a session at once.
    End {
        /// As `sessions` and the journal's SESSION show it, or the Mcp-Session-Id itself.
        session: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// The same as `users`.
    List,
    /// End a user's sessions, grants and tokens at once.
    End {
        /// The login of the Forgejo user, or id:NUMBER.
        login: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GrantCommand {
    /// Revoke a grant and end its sessions.
    Revoke {
        /// As `grants` shows it.
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Show which key seals, and how much.
    Status,
    /// Replace the key, and seal everything anew, while everything goes on.
    Rotate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token for a user; reads the user's Forgejo token from standard input.
    Create(Create),
    /// The same as `grants`.
    List(OfUser),
    /// Hold a token to other tools, networks or another end; its sessions end, and begin anew as they may.
    Change(Change),
    /// The same as `grant revoke`.
    Revoke {
        /// As `token list` shows it.
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The login of the Forgejo user, or id:NUMBER.
    #[arg(long, value_name = "LOGIN")]
    pub(crate) user: String,
    /// A name for what will use the token.
    #[arg(long, value_name = "NAME", default_value = "service")]
    pub(crate) client: String,
    /// When it ends: after a time (30d), or on a day or at a time, in UTC (2027-01-31, 2027-01-31T12:00:00Z).
    #[arg(long, visible_alias = "ttl", value_name = "WHEN", default_value = "30d", value_parser = expiry)]
    pub(crate) expires: Expiry,
    /// Allow only tools that read.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Allow these tools only, and show no others.
    #[arg(long, value_name = "TOOL,…", value_delimiter = ',')]
    pub(crate) tools: Option<Vec<String>>,
    /// Take it from these addresses or networks only, such as 192.0.2.0/24.
    #[arg(long, value_name = "NETWORK,…", value_delimiter = ',')]
    pub(crate) from: Option<Vec<String>>,
    /// Read the Forgejo token from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(crate) struct Change {
    /// As `token list` shows it.
    pub(crate) id: String,
    /// When it ends, as for `token create`.
    #[arg(long, group = "change", value_name = "WHEN", value_parser = expiry)]
    pub(crate) expires: Option<Expiry>,
    /// Allow these tools only, and show no others.
    #[arg(long, group = "change", value_name = "TOOL,…", value_delimiter = ',')]
    tools: Option<Vec<String>>,
    /// Allow all tools again.
    #[arg(long, group = "change", conflicts_with = "tools")]
    all_tools: bool,
    /// Take it from these addresses or networks only.
    #[arg(long, group = "change", value_name = "NETWORK,…", value_delimiter = ',')]
    from: Option<Vec<String>>,
    /// Take it from anywhere again.
    #[arg(long, group = "change", conflicts_with = "from")]
    from_anywhere: bool,
}

impl Change {
    /// The tools that are to be in force, where that is to change.
    pub(crate) fn new_tools(&self) -> Option<NewList> {
        new_list(self.tools.as_ref(), self.all_tools)
    }

    /// The networks.
    pub(crate) fn new_networks(&self) -> Option<NewList> {
        new_list(self.from.as_ref(), self.from_anywhere)
    }
}

fn new_list(only: Option<&Vec<String>>, any: bool) -> Option<NewList> {
    let any = any.then_some(NewList::Any);
    only.map(|list| NewList::Only(list.clone())).or(any)
}

/// A time from now, or a day or a time of it in UTC (RFC 3339). A day is its first second.
fn expiry(text: &str) -> Result<Expiry, String> {
    if let Ok(time) = humantime::parse_duration(text) {
        return Ok(Expiry::In(time.as_secs()));
    }
    let day = format!("{text}T00:00:00Z");
    let at = humantime::parse_rfc3339_weak(text).or_else(|_| humantime::parse_rfc3339_weak(&day));
    let secs = at.ok().and_then(|at: SystemTime| i64::try_from(at.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok());
    secs.map(Expiry::At).ok_or_else(|| "say a time such as 30d, or a day such as 2027-01-31".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_time_from_now_or_a_day_or_a_time_of_it() {
        let table = [
            ("30d", Expiry::In(30 * 24 * 3600)),
            ("12h", Expiry::In(12 * 3600)),
            ("2027-01-31", Expiry::At(1_801_353_600)),
            ("2027-01-31T12:00:00Z", Expiry::At(1_801_396_800)),
            ("2027-01-31 12:00:00", Expiry::At(1_801_396_800)),
        ];
        for (text, expected) in table {
            assert_eq!(expiry(text), Ok(expected), "{text}");
        }
        for bad in ["", "soon", "30", "2027-02-30", "2027-01", "1969-01-01", "-1d"] {
            assert!(expiry(bad).is_err(), "{bad}");
        }
    }
}
