//! `completions DIR`: what shells complete for the three programs, made from their command lines. For packages only: none
//! of the programs carries the generator, and root's least of all.

use std::path::PathBuf;

use clap_complete::{Shell, generate_to};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: completions DIR")?);
    std::fs::create_dir_all(&dir)?;
    let commands = [forgejo_mcp_broker::command(), forgejo_mcp_supervisor::command(), forgejo_mcp_brokerctl::command()];
    for mut command in commands {
        let name = command.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            generate_to(shell, &mut command, &name, &dir)?;
        }
    }
    Ok(())
}
