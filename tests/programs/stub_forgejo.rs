//! `stub-forgejo [--listen ADDRESS]`: the stub forge as a program. Prints `LISTENING http://ADDRESS` once it accepts.

#![expect(clippy::print_stdout, reason = "the address is this program's output")]

use tokio::net::TcpListener;
use wire::clock::Clock;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut listen = "127.0.0.1:0".to_owned();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--listen" => listen = args.next().ok_or("--listen needs an address, as 127.0.0.1:3000")?,
            other => return Err(format!("unknown argument {other}; usage: stub-forgejo [--listen ADDRESS]").into()),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(&listen).await?;
        println!("LISTENING http://{}", listener.local_addr()?);
        harness::forge::serve(listener, harness::forge::Forge::new(Clock::system())).await?;
        Ok(())
    })
}
