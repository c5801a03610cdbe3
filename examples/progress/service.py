"""A long job: one rule starts it and gives its id, another tells how far it is.

python3 examples/progress/service.py [PORT], default 5000; friend.py calls it.
"""

import pathlib
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # finds microconnect.py
from microconnect import Microservice

Micro = Microservice(__name__, host='127.0.0.1')
workers = ThreadPoolExecutor(max_workers=2)  # they end their jobs before the program ends
jobs = {}  # id -> job; each stays until the service ends


def count_primes(job, limit):
    """The job itself, which notes how far it is."""
    found = 0
    for number in range(2, limit):
        found += all(number % divisor for divisor in range(2, int(number**0.5) + 1))
        job['percent'] = 100 * number // limit
    return found


@Micro.typing('/start')
def start(limit):
    """Start a job, and give its id at once."""
    job_id, job = uuid.uuid4().hex, {'percent': 0}
    job['future'] = workers.submit(count_primes, job, limit)
    jobs[job_id] = job
    return job_id


@Micro.typing('/progress')
def progress(job_id):
    """Tell the percent that are done, and None or, at the end, the result."""
    job = jobs[job_id]
    if job['future'].done():
        return 100, job['future'].result()  # raises what the job raised
    return job['percent'], None


if __name__ == '__main__':
    Micro.run(port=int(sys.argv[1]) if sys.argv[1:] else 5000)
