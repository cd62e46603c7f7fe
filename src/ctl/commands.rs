//! What can be asked for on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

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
    /// Only those of this user.
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
        /// The login of the Forgejo user.
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
    /// The same as `grant revoke`.
    Revoke {
        /// As `token list` shows it.
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The login of the Forgejo user.
    #[arg(long, value_name = "LOGIN")]
    pub(crate) user: String,
    /// A name for what will use the token.
    #[arg(long, value_name = "NAME", default_value = "service")]
    pub(crate) client: String,
    /// How long it is good for.
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    /// Allow only tools that read.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Read the Forgejo token from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}
