//! The broker's promises, room by room, on fakes or on the stub of Forgejo, with time standing still.

mod identity;
mod oauth;
mod rotation;
mod sessions;
mod supervisor_client;
