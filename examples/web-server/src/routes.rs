//! What the service answers.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
    response::IntoResponse,
    routing::get,
};
use futures_util::{StreamExt, stream};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    orders::{Order, Orders},
    ticks::{Seen, Ticks},
    warm::{Found, Read, Warm},
};

/// Everything the routes answer from.
#[derive(Debug, Clone)]
pub(crate) struct Shop {
    pub(crate) orders: Orders,
    pub(crate) warm: Warm,
    pub(crate) ticks: Ticks,
    pub(crate) counter: Arc<AtomicU64>,
}

/// The routes.
pub(crate) fn router(shop: Shop) -> Router {
    Router::new()
        .route("/", get(|| async { "crac web-server\n" }))
        .route("/counter", get(count))
        .route("/orders", get(list_orders).post(add_order))
        .route("/warm", get(read_all))
        .route("/warm/{n}", get(look_up))
        .route("/slow", get(slow))
        .route("/random", get(random))
        .route("/instance", get(instance))
        .route("/ticks", get(ticks))
        .with_state(shop)
}

async fn count(State(shop): State<Shop>) -> String {
    format!("{}\n", shop.counter.fetch_add(1, Ordering::Relaxed) + 1)
}

async fn list_orders(State(shop): State<Shop>) -> Result<Json<Vec<Order>>, DatabaseError> {
    Ok(Json(shop.orders.list().await?))
}

async fn add_order(State(shop): State<Shop>, item: String) -> Result<(StatusCode, Json<Order>), DatabaseError> {
    Ok((StatusCode::CREATED, Json(shop.orders.add(&item).await?)))
}

/// Every page of the warmed-up cache, on a thread that may take its time.
async fn read_all(State(shop): State<Shop>) -> Result<Json<Read>, StatusCode> {
    let read = tokio::task::spawn_blocking(move || shop.warm.read_all()).await;
    read.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

async fn look_up(State(shop): State<Shop>, Path(n): Path<u64>) -> Result<Json<Found>, (StatusCode, String)> {
    let found = shop.warm.look_up(n).map(Json);
    found.ok_or_else(|| (StatusCode::NOT_FOUND, format!("no entry {n}; see --warm-mib, 256 entries each\n")))
}

#[derive(Debug, Deserialize)]
struct Slow {
    ms: u64,
}

/// Two halves with `ms` milliseconds in between: a response whose body ends long after its head.
async fn slow(Query(Slow { ms }): Query<Slow>) -> Body {
    let first = stream::once(async { "first half, " });
    let second = stream::once(async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        "second half\n"
    });
    Body::from_stream(first.chain(second).map(Ok::<_, Infallible>))
}

/// One number from each generator that is private to the thread that answers.
#[derive(Debug, Serialize)]
struct Random {
    rand: u64,
    uuid: Uuid,
    fast: u64,
}

async fn random() -> Json<Random> {
    Json(Random { rand: rand::rng().random(), uuid: Uuid::new_v4(), fast: fastrand::u64(..) })
}

/// Which life answers.
#[derive(Debug, Serialize)]
struct Instance {
    generation: u64,
    instance_id: Option<String>,
    restored: bool,
    asleep_ms: f64,
    pid: u32,
}

async fn instance() -> Json<Instance> {
    // Without a context, as in tests of the routes, this is the first life.
    let life = crac::Context::current().map(|context| context.life());
    Json(Instance {
        generation: life.as_ref().map_or(0, |life| life.generation()),
        instance_id: life.as_ref().map(|life| life.instance_id().to_string()),
        restored: life.as_ref().is_some_and(|life| life.is_restored()),
        asleep_ms: life.as_ref().map_or(0.0, |life| life.asleep_wall().as_secs_f64() * 1e3),
        pid: std::process::id(),
    })
}

async fn ticks(State(shop): State<Shop>) -> Json<Seen> {
    Json(shop.ticks.seen())
}

/// The database did not do what it was asked.
#[derive(Debug)]
struct DatabaseError(sqlx::Error);

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for DatabaseError {
    fn into_response(self) -> axum::response::Response {
        tracing::error!(error = %self.0, "database");
        (StatusCode::INTERNAL_SERVER_ERROR, format!("database: {}\n", self.0)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{Method, Request};
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;

    struct Setup {
        router: Router,
        _dir: tempfile::TempDir,
    }

    impl Setup {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let url = format!("sqlite:{}", dir.path().join("orders.db").display());
            let orders = Orders::open(&url).await.unwrap();
            let shop = Shop { orders, warm: Warm::build(1), ticks: Ticks::start(), counter: Arc::default() };
            Self { router: router(shop), _dir: dir }
        }

        async fn ask(&self, method: Method, path: &str, body: &str) -> (StatusCode, String) {
            let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status, String::from_utf8(body.to_vec()).unwrap())
        }

        async fn get(&self, path: &str) -> (StatusCode, String) {
            self.ask(Method::GET, path, "").await
        }

        async fn json(&self, path: &str) -> Value {
            serde_json::from_str(&self.get(path).await.1).unwrap()
        }
    }

    #[tokio::test]
    async fn the_counter_counts() {
        let setup = Setup::new().await;
        assert_eq!(setup.get("/counter").await, (StatusCode::OK, "1\n".into()));
        assert_eq!(setup.get("/counter").await, (StatusCode::OK, "2\n".into()));
    }

    #[tokio::test]
    async fn an_order_is_listed() {
        let setup = Setup::new().await;
        let (status, order) = setup.ask(Method::POST, "/orders", "tea").await;
        assert_eq!(status, StatusCode::CREATED);
        assert_eq!(setup.json("/orders").await, json!([serde_json::from_str::<Value>(&order).unwrap()]));
        assert!(order.contains("tea"));
    }

    #[tokio::test]
    async fn the_cache_answers_for_what_it_holds() {
        let setup = Setup::new().await;
        assert_eq!(setup.json("/warm/255").await["n"], 255);
        assert_eq!(setup.get("/warm/256").await.0, StatusCode::NOT_FOUND);
        assert_eq!(setup.get("/warm/x").await.0, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn a_slow_answer_has_two_halves() {
        let setup = Setup::new().await;
        assert_eq!(setup.get("/slow?ms=1").await, (StatusCode::OK, "first half, second half\n".into()));
        assert_eq!(setup.get("/slow").await.0, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn random_numbers_differ() {
        let setup = Setup::new().await;
        let (one, two) = (setup.json("/random").await, setup.json("/random").await);
        for field in ["rand", "uuid", "fast"] {
            assert!(!one[field].is_null() && one[field] != two[field], "{field}: {one} {two}");
        }
    }

    #[tokio::test]
    async fn the_first_life_says_so() {
        let instance = Setup::new().await.json("/instance").await;
        assert_eq!((&instance["generation"], &instance["restored"]), (&json!(0), &json!(false)));
        assert_eq!(instance["pid"], std::process::id());
    }

    #[tokio::test]
    async fn ticks_are_told() {
        let ticks = Setup::new().await.json("/ticks").await;
        assert!(ticks["ticks"].is_u64() && ticks["burst_max"].is_u64() && ticks["gap_max_ms"].is_f64(), "{ticks}");
    }
}
