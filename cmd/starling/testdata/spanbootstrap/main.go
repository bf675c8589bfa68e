// Command spanbootstrap serves several calls at once. Each sleeps as many milliseconds as its payload says and is answered
// with when it began and ended, in Unix nanoseconds.
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const atOnce = 30

func main() {
	base := "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/invocation/"
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 2 * atOnce
	for range atOnce - 1 {
		go serve(base)
	}
	serve(base)
}

func serve(base string) {
	for {
		res, err := http.Get(base + "next")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		began := time.Now()
		ms, _ := strconv.Atoi(strings.TrimSpace(string(body)))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		answer := fmt.Sprintf("[%d,%d]", began.UnixNano(), time.Now().UnixNano())
		res, err = http.Post(base+res.Header.Get("Lambda-Runtime-Aws-Request-Id")+"/response", "application/json", strings.NewReader(answer))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}
