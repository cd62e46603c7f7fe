//! Another child program: notices it and tells the core which children run the old one.
//!
//! Children are never stopped here, because only the broker knows when nobody has a call. A program that cannot be run
//! replaces nothing: what runs goes on until there is one that can.

use std::path::Path;

use crate::core::Event;
use crate::executor::Executor;
use crate::program::watch::{ProgramWatch, SETTLED_AFTER};
use wire::message::ChildId;

impl Executor {
    /// Tells of each replacement when the new program is there as a whole. Ends never.
    pub(super) async fn tell_of_replacements(self) {
        let mut watch = ProgramWatch::new();
        let mut told = None;
        if let Err(error) = &watch {
            not_watched(&self.policy().config.profile.program, error);
        }
        loop {
            let policy = self.policy();
            let program = &policy.config.profile.program;
            if let Ok(watch) = &mut watch
                && let Err((dir, error)) = watch.follow(program)
            {
                not_watched(&dir, &error);
            }
            // After the watch is set, so that nothing happens unseen in between.
            let newest = self.newest_of_an_old_program();
            if let Some(newest) = newest.filter(|_| newest != told) {
                self.feed(Event::ProgramReplaced(ChildId(newest.0.saturating_add(1))));
            }
            told = newest;
            let heard = async {
                let changed = async {
                    match &watch {
                        Ok(watch) => watch.changed().await,
                        Err(_) => std::future::pending().await,
                    }
                };
                tokio::select! {
                    changed = changed => changed?,
                    () = self.look_again.notified() => {}
                }
                if let Ok(watch) = &watch {
                    return watch.settled().await;
                }
                tokio::time::sleep(SETTLED_AFTER).await;
                Ok(())
            };
            if let Err(error) = heard.await {
                not_watched(program, &error);
                watch = Err(error);
            }
        }
    }

    fn newest_of_an_old_program(&self) -> Option<ChildId> {
        let now = self.policy().look_at_program().ok()?;
        let state = self.state.borrow();
        let old = state.children.iter().filter(|(_, running)| running.program != now);
        old.map(|(id, _)| *id).max()
    }
}

/// Once for each directory and error: the next change of the path is told again.
fn not_watched(what: &Path, error: &std::io::Error) {
    let what = what.display();
    tracing::warn!(
        reason = "not-watched", %error,
        "{what} cannot be watched: a new child program is noticed when the next child starts"
    );
}
