//! `/`: what this is, and how each well-known client is connected; with a link where the client's documentation names one.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use url::form_urlencoded::byte_serialize;

use crate::oauth::site::Site;
use crate::oauth::{Context, page};

/// What the server is called in a client.
const NAME: &str = "forgejo";

#[derive(Debug, Template)]
#[template(path = "front_page.html", config = ".askama.toml")]
struct FrontPage<'a> {
    site: &'a Site,
    endpoint: &'a str,
    forgejo: &'a str,
    can_log_in: bool,
    links: Vec<Link>,
}

/// Opens a client on this machine, which asks whether to add the server.
#[derive(Debug)]
struct Link {
    client: &'static str,
    address: String,
}

/// GET.
pub(crate) async fn show(State(context): State<Arc<Context>>) -> Response {
    let page = FrontPage {
        site: &context.site,
        endpoint: &context.resource,
        forgejo: context.forgejo.url(),
        can_log_in: context.application.is_some(),
        links: links(&context.resource),
    };
    page::respond(StatusCode::OK, &page)
}

/// The links, in the form of each client's documentation.
fn links(endpoint: &str) -> Vec<Link> {
    // `+` for a space is understood in forms only.
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
    let in_base64 = |config: &Value| encoded(&STANDARD.encode(config.to_string()));
    let url = json!({"url": endpoint});
    let with_name = encoded(&json!({"name": NAME, "type": "http", "url": endpoint}).to_string());
    let about = encoded("Forgejo: repositories, issues and pull requests");
    let all = [
        // code.visualstudio.com/api/extension-guides/ai/mcp, "Create an MCP installation URL"
        ("VS Code", format!("vscode:mcp/install?{with_name}")),
        ("VS Code Insiders", format!("vscode-insiders:mcp/install?{with_name}")),
        // cursor.com/docs/mcp/install-links
        ("Cursor", format!("cursor://anysphere.cursor-deeplink/mcp/install?name={NAME}&config={}", in_base64(&url))),
        // lmstudio.ai/docs/app/mcp/deeplink
        ("LM Studio", format!("lmstudio://add_mcp?name={NAME}&config={}", in_base64(&url))),
        // block.github.io/goose/docs, the installers of its remote extensions
        (
            "Goose",
            format!(
                "goose://extension?type=streamable_http&url={}&id={NAME}&name=Forgejo&description={about}",
                encoded(endpoint)
            ),
        ),
    ];
    all.into_iter().map(|(client, address)| Link { client, address }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use url::Url;

    const ENDPOINT: &str = "https://mcp.example.org/mcp";

    fn link(client: &str) -> Url {
        let link = links(ENDPOINT).into_iter().find(|link| link.client == client).expect("there");
        Url::parse(&link.address).expect("an address")
    }

    fn parameter(url: &Url, name: &str) -> String {
        url.query_pairs().find(|(key, _)| key == name).expect("there").1.into_owned()
    }

    #[test]
    fn vs_code_is_given_the_server_as_json_in_the_query() {
        for (client, scheme) in [("VS Code", "vscode"), ("VS Code Insiders", "vscode-insiders")] {
            let url = link(client);
            assert_eq!((url.scheme(), url.path()), (scheme, "mcp/install"));
            let query = url.query().expect("a query");
            let said = percent_decoded(query);
            let said: Value = serde_json::from_str(&said).expect("json");
            assert_eq!(said, json!({"name": "forgejo", "type": "http", "url": ENDPOINT}));
        }
    }

    #[test]
    fn cursor_and_lm_studio_are_given_an_entry_of_mcp_json_in_base64() {
        for (client, place) in [
            ("Cursor", "cursor://anysphere.cursor-deeplink/mcp/install?name=forgejo&config="),
            ("LM Studio", "lmstudio://add_mcp?name=forgejo&config="),
        ] {
            let url = link(client);
            assert!(url.as_str().starts_with(place), "{url}");
            let config = STANDARD.decode(parameter(&url, "config")).expect("base64");
            assert_eq!(serde_json::from_slice::<Value>(&config).expect("json"), json!({"url": ENDPOINT}));
        }
    }

    #[test]
    fn goose_is_given_a_remote_extension() {
        let url = link("Goose");
        assert_eq!((url.scheme(), url.host_str()), ("goose", Some("extension")));
        for (name, value) in [("type", "streamable_http"), ("url", ENDPOINT), ("id", "forgejo"), ("name", "Forgejo")] {
            assert_eq!(parameter(&url, name), value);
        }
        assert!(!url.as_str().contains('+'));
    }

    /// As `decodeURIComponent` does, which knows no `+`.
    fn percent_decoded(text: &str) -> String {
        assert!(!text.contains('+'));
        url::form_urlencoded::parse(format!("x={text}").as_bytes()).next().expect("one").1.into_owned()
    }
}
