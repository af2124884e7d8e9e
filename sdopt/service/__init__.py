"""Images over HTTP as OpenAI's API has them: one front, a worker process and a queue per GPU.

    request -> job -> queue -> worker -> PNG -> response

The front never imports torch: what it knows of a level and a source, a worker has told it.
"""
