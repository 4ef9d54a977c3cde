mod doubt;
mod model;
mod scale;
mod scene;
mod stored_plans;

use super::*;
