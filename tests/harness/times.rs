//! How long something took, many times.

use std::time::{Duration, Instant};

use crate::deployment::Result;

/// Times in the order in which they were taken.
#[derive(Default)]
pub struct Times(pub Vec<Duration>);

impl Times {
    /// Takes the time of this.
    pub fn take(&mut self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let begin = Instant::now();
        work()?;
        self.0.push(begin.elapsed());
        Ok(())
    }

    /// The time that `percent` of all are not above.
    pub fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() * percent / 100).or(sorted.last()).copied().unwrap_or_default()
    }

    pub fn median(&self) -> Duration {
        self.at(50)
    }
}

/// How many times `unit` this is.
pub fn ratio(this: Duration, unit: Duration) -> f64 {
    this.as_secs_f64() / unit.as_secs_f64()
}
