//! `forgejo-mcp-brokerctl`: the operator's hand on a running broker, over its Unix socket.
//!
//! Prints results on standard output and everything else on standard error, so that `TOKEN=$(… token create …)`
//! works. A Forgejo token is read from standard input or a file; on a command line every user of the machine could
//! read it. With `--json` every command prints JSON, in the forms of `src/broker/admin/api.rs`.

mod client;
mod commands;
mod doctor;
mod redact;
mod show;
mod support;
mod surroundings;

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use zeroize::Zeroizing;

use crate::client::{Client, CtlError};
use crate::commands::{
    Change, Command, Create, GrantCommand, KeyCommand, OfUser, Options, SessionCommand, TokenCommand, UserCommand,
};
use crate::show::{JsonArray, Row, Table};
use forgejo_mcp_broker::admin::api::{
    ChangeToken, ClientView, CreateToken, EndedUser, GrantView, PageQuery, SessionView, State, UserView,
};
use wire::secret::UpstreamToken;

/// The command line, for what describes it: completions of shells.
pub fn command() -> clap::Command {
    <Options as clap::CommandFactory>::command()
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
    let Options { socket, json, command } = options;
    let client = Client::new(&socket)?;
    match command {
        Command::Status => {
            let status = client.status().await?;
            print(&if json { show::json(&status)? } else { show::status(&status) })?;
            // For monitors, after all that there is to say.
            if status.supervisor.is_some() { Ok(()) } else { Err(CtlError::NoSupervisor) }
        }
        Command::Doctor(files) => {
            let findings = doctor::examine(&client, &files).await;
            print(&if json { show::json(&findings)? } else { show::findings(&findings) })?;
            let failed = findings.iter().filter(|finding| finding.state == State::Fail).count();
            if failed == 0 { Ok(()) } else { Err(CtlError::Findings(failed)) }
        }
        Command::Sessions(OfUser { user }) => list::<SessionView>(&client, "/sessions", user, json).await,
        Command::Session(SessionCommand::End { session }) => {
            let ended = client.end_session(&session).await?;
            done(json, &ended, &format!("session {} is ended", ended.session))
        }
        Command::Users | Command::User(UserCommand::List) => list::<UserView>(&client, "/users", None, json).await,
        Command::User(UserCommand::End { login }) => {
            let ended = client.end_user(&login).await?;
            let lines: Vec<String> = ended.iter().map(of_ended).collect();
            done(json, &ended, &lines.join("\n"))
        }
        Command::Clients => list::<ClientView>(&client, "/clients", None, json).await,
        Command::Grants(OfUser { user }) | Command::Token(TokenCommand::List(OfUser { user })) => {
            list::<GrantView>(&client, "/tokens", user, json).await
        }
        Command::Grant(GrantCommand::Revoke { id }) | Command::Token(TokenCommand::Revoke { id }) => {
            client.revoke(&id).await?;
            done(json, &json!({"revoked": id}), &format!("grant {id} is revoked and its sessions are ended"))
        }
        Command::Token(TokenCommand::Create(asked)) => create(&client, asked, json).await,
        Command::Token(TokenCommand::Change(asked)) => change(&client, &asked, json).await,
        Command::Key(KeyCommand::Status) => {
            let key = client.key().await?;
            print(&if json { show::json(&key)? } else { show::key(&key) })
        }
        Command::Key(KeyCommand::Rotate) => {
            let rotated = client.rotate_key().await?;
            let said = format!(
                "key {} is in force and {} credentials are sealed anew; keep a copy of its file, and the one before it as \
                 long as a backup needs it",
                rotated.key, rotated.credentials
            );
            done(json, &rotated, &said)
        }
        Command::Backup { path } => {
            let keys = client.backup(&path).await?;
            let needs =
                if keys.is_empty() { "no key".to_owned() } else { format!("key {}", keys.replace(',', " and ")) };
            let list: Vec<&str> = keys.split(',').filter(|key| !key.is_empty()).collect();
            let said = format!("{} is written and needs {needs}; keep the key apart from it", path.display());
            done(json, &json!({"file": path, "keys": list}), &said)
        }
        Command::Support { path, files } => {
            support::write(&client, &files, &path).await?;
            let said = format!(
                "{} is written; names, addresses and secrets are taken out as far as they can be told. Look through it \
                 before you give it away: `tar -xOf {}`",
                path.display(),
                path.display()
            );
            done(json, &json!({"file": path}), &said)
        }
    }
}

fn of_ended(ended: &EndedUser) -> String {
    let EndedUser { number, login, grants, sessions } = ended;
    format!(
        "{login} (number {number}): {grants} grants are revoked, {sessions} sessions are ended; nothing keeps them from \
         logging in again but [access] deny, or Forgejo"
    )
}

async fn create(client: &Client, create: Create, json: bool) -> Result<(), CtlError> {
    let forgejo_token = read_token(create.token_file.as_deref())?;
    let asked = CreateToken {
        user: create.user,
        client: create.client,
        expires: create.expires,
        read_only: create.read_only,
        tools: create.tools,
        networks: create.from,
        forgejo_token,
    };
    let created = client.create(&asked).await?;
    if json {
        return print(&show::json(&created)?);
    }
    let until = show::time(Some(created.expires_at));
    tell(&format!("token {} for {} is good until {until}; it is shown only now", created.id, asked.user));
    print(&format!("{}\n", created.token))
}

async fn change(client: &Client, change: &Change, json: bool) -> Result<(), CtlError> {
    let asked = ChangeToken { expires: change.expires, tools: change.new_tools(), networks: change.new_networks() };
    let changed = client.change(&change.id, &asked).await?;
    let said = format!("token {} is changed and its {} sessions are ended", changed.id, changed.sessions);
    done(json, &changed, &said)
}

/// Says that something is done: to a person on standard error, to a program on standard output.
fn done(json: bool, result: &impl serde::Serialize, said: &str) -> Result<(), CtlError> {
    if json {
        return print(&show::json(result)?);
    }
    tell(said);
    Ok(())
}

/// Prints a list page by page as it comes, so that neither side holds all of it.
async fn list<T: Row>(client: &Client, list: &str, user: Option<String>, json: bool) -> Result<(), CtlError> {
    let mut query = PageQuery { user, ..PageQuery::default() };
    let (mut table, mut array) = (Table::new(show::terminal_width()), JsonArray::default());
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
            tell("paste the user's Forgejo token, then press Enter and Ctrl-D:");
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
    fn the_command_line_is_well_formed_and_takes_json_before_and_behind_a_command() {
        Options::command().debug_assert();
        for arguments in [["x", "--json", "status"], ["x", "status", "--json"]] {
            assert!(Options::try_parse_from(arguments).expect("known").json);
        }
    }
}
