//! What a filter decides by is what the upstream gets: nothing that is taken away, put together or trimmed on the way.

use crate::auth::credential;
use crate::support::h2::H2Client;
use crate::support::raw::send;
use crate::support::{Gateway, Origin, runtime, upstream};

fn gateway(origin: &Origin, filters: &str) -> Gateway {
    Gateway::start(&format!(
        "[consumers.one]\ncredentials = [{}]\n[listeners.http]\naddress = \"127.0.0.1:0\"\nhttp2 = \"cleartext\"\n{}\
         [routes.all]\nmatch = {{ path = \"/{{*rest}}\" }}\nupstream = \"app\"\nfilters = [{{ api_key = {{}} }}, {filters}]\n\
         [routes.beta]\nmatch = {{ path = \"/{{*rest}}\", headers = {{ x-beta = \"1\" }} }}\nfilters = [{{ respond = {{ body = \"beta\" }} }}]\n",
        credential("who-calls"),
        upstream("app", &[origin], "")
    ))
}

#[test]
fn nothing_is_decided_by_a_field_that_connection_takes_away() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "{ require = { condition = \"request.headers['x-org'] == 'mine'\" } }");
    let ask =
        |headers: &[(&str, &str)]| send(gateway.http(), "GET", "/", &[&[("x-api-key", "who-calls")], headers].concat(), b"");
    let status = |headers: &[(&str, &str)]| ask(headers).status;
    assert_eq!(status(&[("x-org", "mine")]), 200);
    assert_eq!(origin.last().header("x-org").as_deref(), Some("mine"));
    for connection in ["x-org", "close, X-Org", "keep-alive,x-other , x-org"] {
        assert_eq!(status(&[("x-org", "mine"), ("connection", connection)]), 403, "{connection}");
    }
    // Nor is a route chosen by it; what stays is what it always was.
    let beta = [("x-org", "mine"), ("x-beta", "1")];
    assert_eq!(ask(&beta).text(), "beta");
    let taken = [("x-org", "mine"), ("x-beta", "1"), ("connection", "x-beta")];
    assert_eq!(ask(&taken).origin(), "a");
    assert_eq!((origin.last().header("x-beta"), origin.last().header("connection")), (None, None));
}

/// RFC 9113 section 8.2.3.
#[test]
fn cookies_of_http2_are_one_line_for_whoever_reads_them() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "{ require = { condition = \"request.headers['cookie'] == 'a=1; b=2; c=3'\" } }");
    runtime().block_on(async {
        let client = H2Client::plain(gateway.http()).await;
        let mut request = http::Request::get("http://localhost/").body(()).unwrap();
        request.headers_mut().insert("x-api-key", "who-calls".parse().unwrap());
        for crumb in ["a=1", "b=2", "c=3"] {
            request.headers_mut().append("cookie", crumb.parse().unwrap());
        }
        assert_eq!(client.call(request, &[]).await.unwrap().status, 200);
    });
    assert_eq!(origin.last().header_all("cookie"), ["a=1; b=2; c=3"]);
}
