//! MCP over HTTP towards clients: one endpoint, `/mcp` (revisions 2025-03-26 to 2026-07-28, streamable HTTP).
//!
//! Behind the bearer layer: the [`Principal`](crate::auth::principal::Principal) in the request's extensions is
//! trusted, every header and every byte of the body is not. [`endpoint`] has the rules, [`body`] reads within them,
//! [`batch`] takes several messages apart, [`answer`] turns what a child says into JSON or an event stream, [`headers`]
//! reads what the client said about itself, [`single`] refuses what it said twice, [`era`] tells sessions from what has
//! none, which is in [`stateless`], [`scope`] keeps a grant to what it allows, [`refusal`] says no. [`observed`] counts
//! what a request came to, [`audit`] tells who called which tool, and [`writes`] keeps the last ones for the caller's
//! user.

pub(crate) mod answer;
pub(crate) mod audit;
mod batch;
pub(crate) mod body;
pub(crate) mod doubt;
pub(crate) mod endpoint;
pub(crate) mod era;
pub(crate) mod headers;
pub(crate) mod observed;
pub(crate) mod refusal;
pub(crate) mod scope;
mod single;
pub(crate) mod sought_id;
mod stateless;
pub(crate) mod tools;
pub(crate) mod writes;
