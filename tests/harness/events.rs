//! The messages of an event stream as they come (SSE; HTML, section 9.2), one by one.

use std::time::Duration;

use reqwest::Response;
use serde_json::Value;
use tokio::time::timeout;

/// Far above what any message takes that comes at all.
const IN_TIME: Duration = Duration::from_secs(30);

/// A stream that may go on.
#[derive(Debug)]
pub struct Events {
    response: Response,
    read: Vec<u8>,
}

impl Events {
    pub fn new(response: Response) -> Self {
        Self { response, read: Vec::new() }
    }

    /// The next message; `None` at an end in order.
    pub async fn next(&mut self) -> Option<Value> {
        timeout(IN_TIME, self.message()).await.expect("a message in time")
    }

    async fn message(&mut self) -> Option<Value> {
        loop {
            while let Some(end) = self.read.windows(2).position(|two| two == b"\n\n") {
                let event = String::from_utf8(self.read.drain(..end + 2).collect()).expect("text");
                // A comment has none.
                if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) {
                    return Some(serde_json::from_str(data).expect("json"));
                }
            }
            self.read.extend_from_slice(&self.response.chunk().await.expect("an end in order")?);
        }
    }
}
