//! JSON-RPC errors as text.

use bytes::Bytes;
use serde::Serialize;

use super::RawId;

/// An error with `data`, which is JSON, where there is some; `id` is `null` where the request's could not be read.
pub(crate) fn error_with(id: Option<&RawId>, code: i32, message: &str, data: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    struct Inner<'a> {
        code: i32,
        message: &'a str,
    }
    let id = id.map_or(&b"null"[..], |id| id.0.as_ref());
    // An integer and a text always serialise; the fallback keeps this total without a panic.
    let mut inner = serde_json::to_vec(&Inner { code, message })
        .unwrap_or_else(|_| br#"{"code":-32603,"message":"Internal error"}"#.to_vec());
    if let Some(data) = data {
        inner.pop();
        inner.extend_from_slice(br#","data":"#);
        inner.extend_from_slice(data.as_bytes());
        inner.push(b'}');
    }
    let mut text = Vec::with_capacity(48 + id.len() + inner.len());
    text.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    text.extend_from_slice(id);
    text.extend_from_slice(br#","error":"#);
    text.extend_from_slice(&inner);
    text.push(b'}');
    text.into()
}
