//! One child from its order to its end: started, attended, told of.
//!
//! Decides nothing: what happened goes to the core, and what follows from it is carried out by the executor.

use std::collections::VecDeque;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::cgroup::leaf;
use crate::cgroup::leaf::Leaf;
use crate::children::{End, StopOrder, attend, await_exec};
use crate::core::{Effect, Event, StartOrder};
use crate::executor::Executor;
use crate::log_limit::Line;
use crate::program::Identity;
use crate::rlimit::ChildLimits;
use crate::spawn;
use crate::spawn::{HalfMade, Launch, Pipes, StartError};
use crate::uid::ChildUid;
use wire::message::{ChildId, Label, Reply, StartStep, TenantId};
use wire::telemetry::message_id;

/// A child from its fork until it is reaped.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) stop_order: watch::Sender<StopOrder>,
    pub(super) tenant: TenantId,
    label: Label,
    pub(super) pid: i32,
    since: Instant,
    pub(super) leaf: Option<Rc<Leaf>>,
    limits: ChildLimits,
    /// As it was just before its start.
    pub(super) program: Identity,
}

impl Executor {
    /// Ends all graces.
    pub(crate) fn kill_all(&self) {
        for running in self.state.borrow().children.values() {
            running.stop_order.send_replace(StopOrder::Kill);
        }
    }

    /// Forks a child and leaves it to a task of its own, which tells the core and the broker how it gets on.
    pub(super) fn start(&self, order: StartOrder) -> Vec<Effect> {
        let StartOrder { child: id, tenant, label, token, uid } = order;
        let policy = self.policy();
        let config = &policy.config;
        let limits = config.limits_of(tenant);
        let (program, ruleset) = match policy.prepare() {
            Ok(prepared) => prepared,
            Err(error) => {
                let start_error = error.start_error();
                return self.step(self.not_started(id, tenant, &label, start_error, &error));
            }
        };
        let forked = (|| {
            let what = "making the child's cgroup";
            let leaf = self.setup.cgroups.as_ref().map(|cgroups| cgroups.leaf(tenant, id, limits));
            let leaf = leaf.transpose().map_err(|error| {
                tracing::error!(%tenant, %error, "a child's cgroup cannot be made for user {tenant}: {error}");
                StartError { step: StartStep::Cgroup, what, errno: error.errno() }
            })?;
            let procs = leaf.as_ref().map(Leaf::procs).transpose().map_err(StartError::at(StartStep::Cgroup, what))?;
            let half_made = spawn::start(&Launch {
                profile: &config.profile,
                extras: &limits.environment,
                token: &token,
                uid,
                rlimits: limits.rlimits(uid.is_some()),
                procs,
                ruleset,
                filters: Arc::clone(&policy.sandbox.filters),
            })?;
            Ok((leaf.map(Rc::new), half_made))
        })();
        let (leaf, HalfMade { pid, pipes, mut news }) = match forked {
            Ok(forked) => forked,
            Err(error) => return self.step(self.not_started(id, tenant, &label, error, &error)),
        };
        let mut child = self.reaper.attend(pid);
        let (stop_order, mut stop_orders) = watch::channel(StopOrder::Run);
        let running = Running {
            stop_order,
            tenant,
            label,
            pid: pid.as_raw(),
            since: Instant::now(),
            leaf: leaf.clone(),
            limits: limits.clone(),
            program,
        };
        let replaced = {
            let children = &mut self.state.borrow_mut().children;
            children.insert(id, running);
            children.values().any(|running| running.program != program)
        };
        if replaced {
            // By something that inotify does not tell, or in this moment.
            self.look_again.notify_one();
        }
        let (executor, ladder) = (self.clone(), config.stop);
        tokio::task::spawn_local(async move {
            if let Err(error) = await_exec(&mut news, &mut child, &mut stop_orders).await {
                if let Some(leaf) = leaf {
                    let emptied = leaf.empty().await;
                    executor.stuck.remove(leaf, uid, emptied);
                }
                return executor.failed(id, error);
            }
            drop(news);
            executor.started(id, uid, pipes);
            let end = attend(&mut child, leaf.as_deref(), ladder, stop_orders).await;
            // A stop whose signal came at the same time is heard first: the signal is looked for before this goes on, so
            // that its announcement comes before this end.
            tokio::task::yield_now().await;
            executor.ended(id, uid, end);
        });
        Vec::new()
    }

    /// The child runs its program.
    fn started(&self, id: ChildId, uid: Option<ChildUid>, pipes: Pipes) {
        let mut pid = 0;
        if let Some(Running { tenant, label, pid: known, .. }) = self.state.borrow().children.get(&id) {
            pid = *known;
            let (uid, started) = (uid.map(ChildUid::get), message_id::CHILD_STARTED);
            tracing::info!(
                MESSAGE_ID = started, %tenant, login = %label, child_uid = uid, child_pid = pid,
                "child {pid} started for {label}, user {tenant}"
            );
        }
        let mut pipes = Some(Vec::from(pipes));
        let mut rest = VecDeque::new();
        for effect in self.step(Event::Started(id, pid.unsigned_abs())) {
            match effect {
                // The one reply that carries descriptors.
                Effect::Send(conn, reply @ Reply::Spawned { .. }) => {
                    if let Some(event) = self.send(conn, &reply, pipes.take().unwrap_or_default()) {
                        rest.extend(self.step(event));
                    }
                }
                other => rest.push_back(other),
            }
        }
        self.carry_out(rest);
    }

    /// It did not come that far, and is gone.
    fn failed(&self, id: ChildId, error: StartError) {
        let running = self.state.borrow_mut().children.remove(&id);
        if let Some(Running { tenant, label, .. }) = running {
            self.feed(self.not_started(id, tenant, &label, error, &error));
        }
    }

    fn ended(&self, id: ChildId, uid: Option<ChildUid>, end: End) {
        let Some(running) = self.state.borrow_mut().children.remove(&id) else { return };
        let Running { tenant, label, pid, since, leaf, limits, .. } = running;
        let End { reaped, stopped, emptied } = end;
        let ending = match &leaf {
            Some(leaf) => leaf.ending(reaped, &limits, stopped),
            None => leaf::ending_without(reaped, &limits, stopped),
        };
        if let Some(leaf) = leaf {
            self.stuck.remove(leaf, uid, emptied);
        }
        let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let usage = ending.usage;
        let throttled_ms = usage.throttled_usec.map(|usec| usec / 1000);
        tracing::info!(
            MESSAGE_ID = message_id::CHILD_ENDED, %tenant, login = %label, child_uid = uid.map(ChildUid::get),
            child_pid = pid, duration_ms, memory_peak = usage.memory_peak, cpu_ms = usage.cpu_usec / 1000,
            throttled_ms, reason = %ending, "child {pid} of {label}, user {tenant}, ended: {ending}"
        );
        self.feed(Event::Ended(id, ending));
    }

    /// Says in the log why a child could not be started, and makes the event of it.
    fn not_started(
        &self,
        id: ChildId,
        tenant: TenantId,
        label: &Label,
        StartError { step, errno, .. }: StartError,
        error: &dyn Display,
    ) -> Event {
        if let Some(Line { left_out }) = self.may_log("not-started") {
            tracing::error!(
                %tenant, login = %label, ?step, errno, %error, left_out,
                "a child could not be started for {label}, user {tenant}: {error}"
            );
        }
        Event::NotStarted(id, step, errno)
    }
}
