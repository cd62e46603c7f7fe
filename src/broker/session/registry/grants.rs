//! What serves stateless requests (revision 2026-07-28): for each grant a warm child of its own, under the rules of all
//! children.
//!
//! Nothing is stored. Two grants share no child, not even two of one user: a child of the session era may ask its client
//! something, and a task that a child has begun must not be found by another client. Of one grant, clients that can be
//! asked for different things get a child each if it speaks the session era, which learns only once what its client can
//! do, and share one if it speaks the stateless era.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::error;

use crate::auth::principal::GrantId;
use crate::chain::chain;
use crate::child::abilities::Abilities;
use crate::child::bridge::Bridge;
use crate::child::calls::Mode;
use crate::child::era;
use crate::session::machine::{Effect, Event, Machine};
use crate::session::registry::children::Started;
use crate::session::registry::{Principal, Registry, SessionError, lines};
use crate::session::route::{Route, RouteKey};
use wire::clock::UnixTime;
use wire::message::{Label, TenantId};

/// The routes of one grant, and whose it is.
#[derive(Debug)]
pub(crate) struct OfGrant {
    tenant: TenantId,
    login: Label,
    client: Arc<str>,
    since: UnixTime,
    last_used: UnixTime,
    routes: Vec<Arc<Route>>,
}

impl OfGrant {
    /// All of them.
    pub(crate) fn routes(&self) -> impl Iterator<Item = Arc<Route>> + '_ {
        self.routes.iter().map(Arc::clone)
    }
}

/// A child that serves a grant, as the operator sees it.
#[derive(Debug)]
pub(crate) struct WarmChild {
    /// The grant.
    pub(crate) grant: GrantId,
    /// The user's number.
    pub(crate) tenant: TenantId,
    /// The user's login.
    pub(crate) login: Label,
    /// The client's id.
    pub(crate) client: Arc<str>,
    /// When the grant's first request of late came.
    pub(crate) since: UnixTime,
    /// When its last one came.
    pub(crate) last_used: UnixTime,
    /// The process.
    pub(crate) pid: u32,
    /// Requests that it has not answered.
    pub(crate) in_flight: usize,
}

impl Registry {
    /// What serves the caller's stateless requests: their running child where it speaks that era, else one that knows that
    /// its client can be asked for this much. Notes the use.
    pub(crate) fn route_for(&self, principal: &Principal, abilities: Abilities) -> Arc<Route> {
        let now = self.0.clock.now();
        let mut grants = self.0.grants.lock();
        let of_grant = grants.entry(principal.grant.clone()).or_insert_with(|| OfGrant {
            tenant: principal.tenant,
            login: principal.login.clone(),
            client: Arc::clone(&principal.client_id),
            since: now,
            last_used: now,
            routes: Vec::new(),
        });
        of_grant.last_used = of_grant.last_used.max(now);
        let relays = |route: &&Arc<Route>| route.live().is_some_and(|bridge| bridge.relays());
        let key = RouteKey::Grant(principal.grant.clone(), abilities);
        let known =
            of_grant.routes.iter().find(relays).or_else(|| of_grant.routes.iter().find(|route| route.key == key));
        if let Some(known) = known {
            return Arc::clone(known);
        }
        // A child that ended is no loss to this client, so that the next request starts another one.
        let route = Arc::new(Route::new(key, principal.tenant, Arc::default(), Machine::cold(true)));
        of_grant.routes.push(Arc::clone(&route));
        route
    }

    /// The running children of the caller's grant.
    pub(crate) fn children_of(&self, principal: &Principal) -> Vec<Arc<Bridge>> {
        self.routes_of(&principal.grant).iter().filter_map(|route| route.live()).collect()
    }

    /// All children that serve a grant's stateless requests, by grant.
    pub(crate) fn warm_children(&self) -> Vec<WarmChild> {
        let grants = self.0.grants.lock();
        let of_one = |(grant, of_grant): (&GrantId, &OfGrant)| {
            let live: Vec<_> = of_grant.routes.iter().filter_map(|route| route.live()).collect();
            let view = |bridge: Arc<Bridge>| WarmChild {
                grant: grant.clone(),
                tenant: of_grant.tenant,
                login: of_grant.login.clone(),
                client: Arc::clone(&of_grant.client),
                since: of_grant.since,
                last_used: of_grant.last_used,
                pid: bridge.pid,
                in_flight: bridge.in_flight(),
            };
            live.into_iter().map(view).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = grants.iter().flat_map(of_one).collect();
        all.sort_by(|a, b| (&a.grant, a.pid).cmp(&(&b.grant, b.pid)));
        all
    }

    pub(super) fn routes_of(&self, grant: &GrantId) -> Vec<Arc<Route>> {
        self.0.grants.lock().get(grant).map(|of_grant| of_grant.routes.clone()).unwrap_or_default()
    }

    /// Stops what serves a grant that is over.
    pub(super) fn end_routes_of(&self, grant: &GrantId, reason: &'static str) {
        let Some(of_grant) = self.0.grants.lock().remove(grant) else { return };
        for route in of_grant.routes {
            if let Effect::Stop(bridge) = route.step(Event::Over) {
                lines::stopped(&route, &bridge, reason);
                bridge.stop();
            }
        }
    }

    /// Forgets one route of a grant, so that the next request begins anew.
    pub(super) fn forget_route(&self, grant: &GrantId, route: &Arc<Route>) {
        if let Effect::Stop(bridge) = route.step(Event::Over) {
            bridge.stop();
        }
        let mut grants = self.0.grants.lock();
        if let Some(of_grant) = grants.get_mut(grant) {
            of_grant.routes.retain(|other| !Arc::ptr_eq(other, route));
            if of_grant.routes.is_empty() {
                grants.remove(grant);
            }
        }
    }

    /// Forgets grants that have no child and start none. A request that found one before wants another one then.
    pub(super) fn forget_cold_routes(&self) {
        self.0.grants.lock().retain(|_, of_grant| {
            of_grant.routes.retain(|route| !route.end_if_cold());
            !of_grant.routes.is_empty()
        });
    }

    /// A child that has said which era it speaks, and is ready for a grant's requests.
    pub(super) async fn asked(
        &self,
        grant: &GrantId,
        abilities: Abilities,
        route: &Route,
        principal: &Principal,
        deadline: Instant,
    ) -> Result<Started, SessionError> {
        let started = async {
            loop {
                // While the child starts, the store is asked whether the grant still stands: a revocation either finds the
                // route, or came first and is seen here.
                let start = self.start(principal, Arc::clone(&route.get_stream), Mode::Translation, deadline);
                let (started, stands) = tokio::join!(start, self.0.records.stands(grant));
                let started = started?;
                match stands {
                    Ok(true) => {}
                    Ok(false) => return Err(SessionError::GrantRevoked),
                    Err(e) => {
                        error!(error = %e, "a grant could not be read: {}", chain(&e));
                        return Err(SessionError::Storage);
                    }
                }
                let by = deadline.min(Instant::now() + self.config().start_timeout);
                match era::find_out(&started.bridge, abilities, &self.0.probing, by).await {
                    Ok(()) => return Ok(started),
                    // It did not survive the question. The next one is not asked.
                    Err(era::FindOutError::DiedOfTheProbe) => {
                        drop(started.bridge);
                        drop(started.permit);
                    }
                    Err(era::FindOutError::Handshake(error)) => return Err(error.into()),
                }
            }
        };
        self.counted(started).await
    }
}
