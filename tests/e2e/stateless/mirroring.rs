//! A tool's arguments that headers repeat: proxies may decide by those, so the child is called with nothing else.

use serde_json::{Value, json};

use super::{ERAS, caller, goes_on};
use crate::stand_in_deployment;
use harness::mcp_stateless::{ID, request};

#[tokio::test]
async fn a_call_whose_headers_say_other_than_its_arguments_reaches_no_child_and_the_grant_goes_on() {
    for (era, arguments) in ERAS {
        let deployment = stand_in_deployment(&format!("stateless-mirroring-{era}"), arguments, |_| {});
        let alice = caller(&deployment, "alice");
        let given = json!({"region": "Zürich ", "at": {"most": 5}});
        let call = request("tools/call", json!({"name": "regional", "arguments": given}));
        let encoded = ("mcp-param-region", "=?base64?WsO8cmljaCA=?=");
        let table: [(&[(&str, &str)], bool); 7] = [
            // The first comes before anybody has asked the child for its tools.
            (&[("mcp-param-region", "Bern"), ("mcp-param-most", "5")], false),
            (&[encoded, ("mcp-param-most", "5")], true),
            (&[encoded, ("mcp-param-most", "5.0"), ("mcp-param-unknown", "x")], true),
            (&[encoded], false),
            (&[], false),
            (&[encoded, ("mcp-param-most", "6")], false),
            (&[("mcp-param-region", "=?base64?WsO8cmljaCA?="), ("mcp-param-most", "5")], false),
        ];
        for (headers, is_good) in table {
            let post = headers.iter().fold(alice.post(&call), |post, (name, value)| post.header(*name, *value));
            let response = post.send().await.expect("an answer");
            let status = response.status().as_u16();
            let answer: Value = response.json().await.expect("json");
            assert_eq!(answer["id"], ID, "{era} {headers:?}: {answer}");
            if is_good {
                let text = answer["result"]["content"][0]["text"].as_str().expect("a result");
                assert_eq!(serde_json::from_str::<Value>(text).expect("json"), given, "{era} {headers:?}");
            } else {
                assert_eq!((status, &answer["error"]["code"]), (400, &json!(-32020)), "{era} {headers:?}: {answer}");
            }
        }
        goes_on(&alice).await;
        assert_eq!(deployment.children().len(), 1, "{era}");
    }
}
