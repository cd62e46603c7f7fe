//! forgejo-mcp-broker: gives every user of a Forgejo instance their own isolated `forgejo-mcp`.
//!
//! The map. Two programs share this library and never each other's rooms:
//!
//! - [`frontend`]: the broker. Unprivileged; speaks HTTP with strangers.
//! - [`supervisor`]: the privileged half. One thread; starts and stops children; speaks [`ipc`] with the broker only.
//! - [`ctl`]: `forgejo-mcp-brokerctl`, for the operator.
//!
//! `bin -> frontend | supervisor | ctl -> ipc -> leaves` ([`limits`], [`secret`], [`clock`], [`config_file`],
//! [`telemetry`], [`lifecycle`], [`admin_api`]). `frontend` and `supervisor` do not import each other; `tests/rooms.rs` sees to it.
//!
//! `unsafe` is denied; the modules that need it are opened by name: `ipc::socket`, `supervisor::spawn`.

pub mod admin_api;
pub mod clock;
pub mod config_file;
pub mod ctl;
pub mod frontend;
pub mod ipc;
pub mod lifecycle;
pub mod limits;
pub mod secret;
pub mod supervisor;
pub mod telemetry;
