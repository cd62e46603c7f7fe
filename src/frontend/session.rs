//! Sessions: who owns which, which backend serves it, and how bytes get there and back.
pub mod spawner;
pub mod supervisor;
