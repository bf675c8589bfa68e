package main

import _ "starling/internal/quiet" // before other packages' initialisation, see there
