//! A child that has fallen to an attacker: it tries what such a child must not be able to do, and tells how each try ended.
//!
//!     hostile-child attack    says `ready`, reads one line of targets, and prints a line for each try
//!     hostile-child victim    says `ready`, and waits for its input to end
//!     hostile-child crash     says `ready`, reads a line, and crashes with what is in its environment
//!     hostile-child i386      makes a system call of another architecture
//!     hostile-child whoami    prints its effective uid
//!
//! A line is a name, a colon and `done`, or the error's name. The targets are words such as `stranger=PID`, see [`Targets`].

#![expect(clippy::print_stdout, reason = "what it found is what this program is for")]

mod files;
mod kernel;
mod network;
mod processes;
#[expect(unsafe_code, reason = "system calls without a safe wrapper")]
mod system_call;

use std::collections::HashMap;
use std::io::BufRead;
use std::process::ExitCode;

/// What is attacked.
struct Targets(HashMap<String, String>);

impl Targets {
    fn read(line: &str) -> Self {
        let pair = |word: &str| word.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self(line.split_whitespace().filter_map(pair).collect())
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(-1)
    }
}

/// The tries, in order: a name that stands for itself, and how it ended.
type Rows = Vec<(String, String)>;

fn main() -> ExitCode {
    let mut lines = std::io::stdin().lock().lines().map_while(Result::ok);
    match std::env::args().nth(1).as_deref() {
        Some("attack") => {
            println!("ready");
            let targets = Targets::read(&lines.next().unwrap_or_default());
            let mut rows = Rows::new();
            processes::attack(&targets, &mut rows);
            files::attack(&targets, &mut rows);
            network::attack(&targets, &mut rows);
            kernel::attack(&mut rows);
            for (name, ended) in &rows {
                println!("{name}: {ended}");
            }
            println!("over");
            lines.for_each(drop);
        }
        Some("victim") => {
            println!("ready");
            lines.for_each(drop);
        }
        Some("crash") => {
            println!("ready");
            drop(lines.next());
            system_call::crash();
        }
        Some("i386") => println!("{}", system_call::of_another_architecture()),
        Some("whoami") => println!("{}", nix::unistd::geteuid()),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}
