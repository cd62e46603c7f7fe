//! `forgejo-mcp-brokerctl`: the operator's hand on a running broker, over its Unix socket.
//!
//! Prints results on standard output and everything else on standard error, so that `TOKEN=$(… token create …)`
//! works. A Forgejo token is read from standard input or a file; on a command line every user of the machine could
//! read it.

mod client;
mod show;

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use zeroize::Zeroizing;

use crate::client::{Client, CtlError};
use crate::show::{JsonArray, Row, Table};
use forgejo_mcp_broker::admin::api::{CreateToken, EndedUser, GrantView, PageQuery, UserView};
use wire::secret::UpstreamToken;

/// Operates a running forgejo-mcp-broker.
#[derive(Debug, Parser)]
#[command(name = "forgejo-mcp-brokerctl", version)]
struct Options {
    /// The broker's operator socket.
    #[arg(long, value_name = "PATH", default_value = "/run/forgejo-mcp-broker/admin.sock")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tokens without OAuth, for services.
    #[command(subcommand)]
    Token(TokenCommand),
    /// The users, and all that one of them has.
    #[command(subcommand)]
    User(UserCommand),
    /// The key that seals Forgejo's tokens.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Write a consistent copy of the database, while everything goes on.
    Backup {
        /// A file that is not there yet.
        path: PathBuf,
    },
    /// What runs, and what separates the users' processes.
    Status(Json),
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// List everybody who was ever here, by their number in Forgejo.
    List(Json),
    /// End a user's sessions, grants and tokens at once.
    End {
        /// The login of the Forgejo user.
        login: String,
    },
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Show which key seals, and how much.
    Status(Json),
    /// Replace the key, and seal everything anew, while everything goes on.
    Rotate,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token for a user; reads the user's Forgejo token from standard input.
    Create(Create),
    /// List all tokens, the newest first.
    List {
        /// Only those of this user.
        #[arg(long, value_name = "LOGIN")]
        user: Option<String>,
        #[command(flatten)]
        json: Json,
    },
    /// Revoke a token and end its sessions.
    Revoke {
        /// As `token list` shows it.
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// The login of the Forgejo user.
    #[arg(long, value_name = "LOGIN")]
    user: String,
    /// A name for what will use the token.
    #[arg(long, value_name = "NAME", default_value = "service")]
    client: String,
    /// How long it is good for.
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// Allow only tools that read.
    #[arg(long)]
    read_only: bool,
    /// Read the Forgejo token from this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Json {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `main` of the tool.
pub fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&CtlError::Runtime(e)),
    };
    match runtime.block_on(run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(&e),
    }
}

fn fail(error: &CtlError) -> ExitCode {
    let mut out = std::io::stderr().lock();
    // Nowhere is left to say that standard error is closed.
    let _ = writeln!(out, "forgejo-mcp-brokerctl: {error}");
    if let Some(hint) = error.hint() {
        let _ = writeln!(out, "hint: {hint}");
    }
    ExitCode::from(error.exit_code())
}

async fn run(options: Options) -> Result<(), CtlError> {
    let client = Client::new(&options.socket)?;
    let text = match options.command {
        Command::Token(TokenCommand::Create(create)) => {
            let forgejo_token = read_token(create.token_file.as_deref())?;
            let asked = CreateToken {
                user: create.user,
                client: create.client,
                ttl_seconds: create.ttl.as_secs(),
                read_only: create.read_only,
                forgejo_token,
            };
            let created = client.create(&asked).await?;
            let _ = writeln!(
                std::io::stderr().lock(),
                "token {} for {} is good until {}; it is shown only now",
                created.id,
                asked.user,
                show::time(Some(created.expires_at))
            );
            format!("{}\n", created.token)
        }
        Command::Token(TokenCommand::List { user, json: Json { json } }) => {
            return list::<GrantView>(&client, "/tokens", user, json).await;
        }
        Command::User(UserCommand::List(Json { json })) => {
            return list::<UserView>(&client, "/users", None, json).await;
        }
        Command::User(UserCommand::End { login }) => {
            for EndedUser { number, login, grants, sessions } in client.end_user(&login).await? {
                tell(&format!(
                    "{login} (number {number}): {grants} grants are revoked, {sessions} sessions are ended; nothing keeps \
                     them from logging in again but [access] deny, or Forgejo"
                ));
            }
            String::new()
        }
        Command::Token(TokenCommand::Revoke { id }) => {
            client.revoke(&id).await?;
            let _ = writeln!(std::io::stderr().lock(), "token {id} is revoked and its sessions are ended");
            String::new()
        }
        Command::Key(KeyCommand::Status(Json { json })) => {
            let key = client.key().await?;
            if json { show::json(&key)? } else { show::key(&key) }
        }
        Command::Key(KeyCommand::Rotate) => {
            let rotated = client.rotate_key().await?;
            tell(&format!(
                "key {} is in force and {} credentials are sealed anew; keep a copy of its file, and the one before it \
                 as long as a backup needs it",
                rotated.key, rotated.credentials
            ));
            String::new()
        }
        Command::Backup { path } => {
            let keys = client.backup(&path).await?;
            let needs =
                if keys.is_empty() { "no key".to_owned() } else { format!("key {}", keys.replace(',', " and ")) };
            tell(&format!("{} is written and needs {needs}; keep the key apart from it", path.display()));
            String::new()
        }
        Command::Status(Json { json }) => {
            let status = client.status().await?;
            print(&if json { show::json(&status)? } else { show::status(&status) })?;
            // For monitors, after all that there is to say.
            return if status.supervisor.is_some() { Ok(()) } else { Err(CtlError::NoSupervisor) };
        }
    };
    print(&text)
}

/// Prints a list page by page as it comes, so that neither side holds all of it.
async fn list<T: Row>(client: &Client, list: &str, user: Option<String>, json: bool) -> Result<(), CtlError> {
    let mut query = PageQuery { user, ..PageQuery::default() };
    let (mut table, mut array) = (Table::default(), JsonArray::default());
    loop {
        let page = client.page::<T>(list, &query).await?;
        print(&if json { array.part(&page.entries)? } else { table.part(&page.entries) })?;
        query.after = page.next;
        if query.after.is_none() {
            return print(if json { array.end() } else { "" });
        }
    }
}

fn print(text: &str) -> Result<(), CtlError> {
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(CtlError::Output)
}

/// A line for a person; results alone go to standard output.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn read_token(file: Option<&Path>) -> Result<UpstreamToken, CtlError> {
    let mut text = Zeroizing::new(String::new());
    if let Some(path) = file {
        let mut file = std::fs::File::open(path).map_err(|e| CtlError::TokenFile(path.to_owned(), e))?;
        file.read_to_string(&mut text).map_err(|e| CtlError::TokenFile(path.to_owned(), e))?;
    } else {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            let _ = writeln!(std::io::stderr().lock(), "paste the user's Forgejo token, then press Enter and Ctrl-D:");
        }
        stdin.lock().read_to_string(&mut text).map_err(CtlError::Input)?;
    }
    UpstreamToken::parse(text.trim()).map_err(CtlError::Token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }
}
