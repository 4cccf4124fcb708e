"""What the core costs, beside a dense network and beside other libraries; timed only when asked."""
